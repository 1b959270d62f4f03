"""Trained weights, second evaluations of cells, and a digest of each row apart from the row."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Weights of older runs are in the cache folders of their machines."""
    op.create_table(
        "weights",
        sa.Column("recipe", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "replications",
        sa.Column("cell", sa.Text, sa.ForeignKey("cells.key"), primary_key=True),
        sa.Column("machine", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("differ", sa.Integer, nullable=False),
        sa.Column("outcomes", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "seals",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
    )
