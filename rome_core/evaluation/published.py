"""What others have printed for larger models. Never mixed with what is measured here: other models, other records."""

from __future__ import annotations

from dataclasses import dataclass

from rome_core.evaluation.measures import COUNTERFACT, ZSRE

SOURCE = (
    "Meng et al. 2022, Locating and Editing Factual Associations in GPT, arXiv 2202.05262: "
    "7,500 CounterFact records for GPT-2 XL, 2,000 for GPT-J; RS against reference texts that are not distributed here"
)


@dataclass(frozen=True)
class Published:
    """One printed table: numbers as printed, times 100."""

    model: str
    dataset: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]


PUBLISHED = (
    Published(
        "GPT-2 XL",
        "CounterFact",
        COUNTERFACT[:9],
        {
            "unedited": (30.5, 22.2, -4.8, 24.7, -5.0, 78.1, 5.0, 626.6, 31.9),
            "FT": (65.1, 100.0, 98.8, 87.9, 46.6, 40.4, -6.2, 607.1, 40.5),
            "FT+L": (66.9, 99.1, 91.5, 48.7, 28.9, 70.3, 3.5, 621.4, 37.4),
            "KN": (35.6, 28.7, -3.4, 28.0, -3.3, 72.9, 3.7, 570.4, 30.3),
            "KE": (52.2, 84.3, 33.9, 75.4, 14.6, 30.9, -11.0, 586.6, 31.2),
            "KE-CF": (18.1, 99.9, 97.0, 95.8, 59.2, 6.9, -63.2, 383.0, 24.5),
            "MEND": (57.9, 99.1, 70.9, 65.4, 12.2, 37.9, -11.6, 624.2, 34.8),
            "MEND-CF": (14.9, 100.0, 99.2, 97.0, 65.6, 5.5, -69.9, 570.0, 33.2),
            "ROME": (89.2, 100.0, 97.9, 96.4, 62.7, 75.4, 4.2, 621.9, 41.9),
        },
    ),
    Published(
        "GPT-J",
        "CounterFact",
        COUNTERFACT[:9],
        {
            "unedited": (23.6, 16.3, -7.2, 18.6, -7.4, 83.0, 7.3, 621.8, 29.8),
            "FT": (25.5, 100.0, 99.9, 96.6, 71.0, 10.3, -50.7, 387.8, 24.6),
            "FT+L": (68.7, 99.6, 95.0, 47.9, 30.4, 78.6, 6.8, 622.8, 35.5),
            "MEND": (63.2, 97.4, 71.5, 53.6, 11.0, 53.9, -6.0, 620.5, 32.6),
            "ROME": (91.5, 99.9, 99.4, 99.1, 74.1, 78.9, 5.2, 620.1, 43.0),
        },
    ),
    Published(
        "GPT-2 XL",
        "zsRE",
        ZSRE[1:4],
        {
            "unedited": (22.2, 21.3, 24.2),
            "FT": (99.6, 82.1, 23.2),
            "FT+L": (92.3, 47.2, 23.4),
            "KE": (65.5, 61.4, 24.9),
            "KE-zsRE": (92.4, 90.0, 23.8),
            "MEND": (75.9, 65.3, 24.1),
            "MEND-zsRE": (99.4, 99.3, 24.1),
            "ROME": (99.8, 88.1, 24.2),
        },
    ),
)
