"""The audit trail (PS3.15 A.5): who came in, who did not, and what was stored."""
