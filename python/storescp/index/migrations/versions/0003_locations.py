"""Instances of before have one place, on a node that is not known."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Fills `instance_location`."""
    op.get_bind().execute(
        sa.text(
            "INSERT INTO instance_location (tenant_id, study_uid, series_uid, sop_uid, study_date, node_id, file_path, "
            "updated) SELECT tenant_id, study_uid, series_uid, sop_uid, study_date, '', file_path, created_time "
            "FROM instance"
        )
    )
