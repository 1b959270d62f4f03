"""Certificates name the source of their certifier."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Whose source is not known counts as another one: it is asked again."""
    column = sa.Column("certifier_digest", sa.Text, nullable=False, server_default="")
    op.add_column("certificates", column)
