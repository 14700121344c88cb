"""What an accuracy can be without knowing anything, and how exactly a test set tells it."""

from scipy.stats import binomtest

from fedmitr_app.report.data import ReportData
from fedmitr_app.report.tables import percent


def chance_of(data: ReportData) -> float | None:
    """Return the accuracy of always naming the test set's most frequent class.

    For a balanced test set that is one in as many as there are classes, which stands for it
    where the classes' numbers are unknown; None if the classes are unknown, too.
    """
    images = data.by_class.get("images") or ()
    if sum(images):
        return float(max(images)) / sum(images)
    return 1 / len(data.class_names) if data.class_names else None


def interval_of(share: float, images: int) -> tuple[float, float] | None:
    """Return the 95 % interval (Wilson, 1927) of a share in [0, 1] of so many images."""
    if images <= 0:
        return None
    found = binomtest(round(share * images), images).proportion_ci(0.95, "wilson")
    return float(found.low), float(found.high)


def interval_words(share: float, images: int) -> str:
    """Return it as "82.4 to 87.1 %", nothing for no images."""
    ends = interval_of(share, images)
    return f"{100 * ends[0]:.1f} to {percent(ends[1])}" if ends else ""
