"""Findings name the source of their diagnostic."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Whose source is not known counts as another one: it is asked again."""
    column = sa.Column("source", sa.Text, nullable=False, server_default="")
    op.add_column("evidence", column)
