"""The first tables: cells with their leases, chunks of outcomes, images, evidence, cards."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table. Going back is restoring the backup."""
    _create_what_was_declared()
    _create_what_is_leased()
    _create_what_was_found()


def _create_what_was_declared() -> None:
    op.create_table(
        "cards",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("cite", sa.Text, nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_table(
        "examples",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("labels", sa.LargeBinary, nullable=False),
        sa.Column("classes", sa.Text, nullable=False),
        sa.Column("shape", sa.Text, nullable=False),
    )
    op.create_table(
        "submissions",
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )


def _leased() -> list[sa.Column[object]]:
    return [
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("culprit", sa.Text),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("updated", sa.Double, nullable=False),
    ]


def _create_what_is_leased() -> None:
    op.create_table("tasks", *_leased())
    op.create_table(
        "cells",
        *_leased(),
        sa.Column("threat", sa.Text, nullable=False),
        sa.Column("defense", sa.Text, nullable=False),
        sa.Column("attack", sa.Text, nullable=False),
        sa.Column("threat_id", sa.Text, nullable=False),
        sa.Column("defense_digest", sa.Text, nullable=False),
        sa.Column("attack_digest", sa.Text, nullable=False),
        sa.Column("examples", sa.Text, nullable=False),
        sa.Column("items", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("numeric", sa.Text, nullable=False),
        sa.Column("source_digest", sa.Text, nullable=False),
        sa.Column("protocol", sa.Integer, nullable=False),
        sa.Column("required", sa.Boolean, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("items_done", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("robust", sa.Integer),
        sa.Column("out_of_ball", sa.Integer),
        sa.Column("fragile", sa.Integer),
        sa.Column("broken_8bit", sa.Integer),
        sa.Column("forwards", sa.BigInteger),
        sa.Column("gradients", sa.BigInteger),
        sa.Column("looks", sa.BigInteger),
        sa.Column("max_distance", sa.Double),
        sa.Column("seal", sa.Text, nullable=False),
    )
    op.create_index("cells_of_a_board", "cells", ["threat", "examples", "mode"])


def _create_what_was_found() -> None:
    op.create_table(
        "chunks",
        sa.Column("cell", sa.Text, sa.ForeignKey("cells.key"), primary_key=True),
        sa.Column("start", sa.Integer, primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("first", sa.Integer, nullable=False),
        sa.Column("last", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("exact", sa.Text, nullable=False),
        sa.Column("outcomes", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "images",
        sa.Column("cell", sa.Text, sa.ForeignKey("cells.key"), primary_key=True),
        sa.Column("item", sa.Integer, primary_key=True),
        sa.Column("shape", sa.Text, nullable=False),
        sa.Column("original", sa.LargeBinary, nullable=False),
        sa.Column("adversarial", sa.LargeBinary, nullable=False),
        sa.Column("true_label", sa.Integer, nullable=False),
        sa.Column("clean_label", sa.Integer, nullable=False),
        sa.Column("clean_confidence", sa.Double, nullable=False),
        sa.Column("label", sa.Integer, nullable=False),
        sa.Column("confidence", sa.Double, nullable=False),
    )
    op.create_table(
        "evidence",
        sa.Column("defense_digest", sa.Text, primary_key=True),
        sa.Column("examples", sa.Text, primary_key=True),
        sa.Column("diagnostic", sa.Text, primary_key=True),
        sa.Column("defense", sa.Text, nullable=False),
        sa.Column("finding", sa.Text, nullable=False),
        sa.Column("sentence", sa.Text, nullable=False),
    )
    op.create_table(
        "certificates",
        sa.Column("defense_digest", sa.Text, primary_key=True),
        sa.Column("threat_id", sa.Text, primary_key=True),
        sa.Column("examples", sa.Text, primary_key=True),
        sa.Column("certifier", sa.Text, primary_key=True),
        sa.Column("defense", sa.Text, nullable=False),
        sa.Column("exact", sa.Boolean, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("certified", sa.LargeBinary, nullable=False),
    )
