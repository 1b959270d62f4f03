"""Sets of examples name the order of which they are the first ones."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Every older set is the beginning of the balanced order."""
    column = sa.Column("order", sa.Text, nullable=False, server_default="balanced")
    op.add_column("examples", column)
