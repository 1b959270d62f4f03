"""Points that are fitted to the training half and shared by all examples of a cell."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Cells of attacks with a point for each example have no rows."""
    op.create_table(
        "fits",
        sa.Column("cell", sa.Text, sa.ForeignKey("cells.key"), primary_key=True),
        sa.Column("shape", sa.Text, nullable=False),
        sa.Column("point", sa.LargeBinary, nullable=False),
        sa.Column("training", sa.Text, nullable=False),
        sa.Column("forwards", sa.BigInteger, nullable=False),
        sa.Column("gradients", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("machine", sa.Text, nullable=False),
    )
