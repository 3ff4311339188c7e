"""Views: conflicts, and DICOM JSON for QIDO-RS."""

from alembic import op

from storescp.index.views import create

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Makes them."""
    create(op.get_bind())
