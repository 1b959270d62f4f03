"""Chunks name the machine class that computed them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """The machine class of older chunks is not known: it is empty."""
    column = sa.Column("machine", sa.Text, nullable=False, server_default="")
    op.add_column("chunks", column)
    op.create_index("machines_of_cells", "chunks", ["cell", "machine"])
