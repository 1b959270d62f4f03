"""Current cells: evaluated with the defense, the attack and the protocol as they are now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from bench.core.cards import AttackCard, DefenseCard
from bench.core.cells import CLEAN, PROTOCOL
from bench.store import CellRow, Store


@dataclass(frozen=True)
class CurrentDigests:
    """Digests by name, of defenses as built for one data set and of attacks, as they are now."""

    defenses: Mapping[str, str]
    attacks: Mapping[str, str]

    def change(self, row: CellRow) -> str:
        """What has changed since the cell was planned; empty where the cell is current."""
        if row.cell.protocol != PROTOCOL:
            return "the protocol"
        if self.defenses.get(row.cell.defense) != row.cell.defense_digest:
            return "the defense"
        if row.cell.attack != CLEAN and self.attacks.get(row.cell.attack) != row.cell.attack_digest:
            return "the attack"
        return ""


def attack_digests(attacks: Iterable[AttackCard]) -> dict[str, str]:
    """Attack -> digest."""
    return {card.name: card.digest for card in attacks}


def defense_digest(defense: DefenseCard, dataset: str, rows: Iterable[CellRow]) -> str:
    """The digest of a defense as built for a data set, of which `rows` are cells.

    A card that was declared before the defense was built has no digest; then the newest cell of
    the defense has it. Empty where there is none either.
    """
    declared = defense.digests.get(dataset, defense.digest)
    mine = [row for row in rows if row.cell.defense == defense.name]
    newest = max(mine, key=lambda row: row.updated, default=None)
    return declared or (newest.cell.defense_digest if newest else "")


def current_cells(store: Store, attacks: Mapping[str, str] | None = None) -> list[CellRow]:
    """The current cells of a database; `attacks`: digests by name, by default as in its cards."""
    known = attack_digests(store.cards(AttackCard)) if attacks is None else attacks
    rows, defenses = store.cells(), store.cards(DefenseCard)
    datasets = {examples: store.examples(examples).dataset for examples in _examples(rows)}
    by_dataset: dict[str, list[CellRow]] = {}
    for row in rows:
        by_dataset.setdefault(datasets[row.cell.examples], []).append(row)
    digests = {
        dataset: CurrentDigests(
            {card.name: defense_digest(card, dataset, cells) for card in defenses}, known
        )
        for dataset, cells in by_dataset.items()
    }
    return [row for row in rows if not digests[datasets[row.cell.examples]].change(row)]


def _examples(rows: Iterable[CellRow]) -> Collection[str]:
    return {row.cell.examples for row in rows}
