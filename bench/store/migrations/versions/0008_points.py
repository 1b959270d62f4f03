"""Points of parametric perturbation sets, from which the adversarial images are made."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Cells of norm balls have no rows: there the point is the image."""
    op.create_table(
        "points",
        sa.Column("cell", sa.Text, sa.ForeignKey("cells.key"), primary_key=True),
        sa.Column("start", sa.Integer, primary_key=True),
        sa.Column("shape", sa.Text, nullable=False),
        sa.Column("points", sa.LargeBinary, nullable=False),
    )
