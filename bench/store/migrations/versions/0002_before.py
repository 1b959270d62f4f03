"""Cells of a cascade name the cell whose survivors they meet."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Cells of before were played in full mode: they follow none."""
    op.add_column("cells", sa.Column("before", sa.Text, nullable=False, server_default=""))
