"""The picture of how a limit follows its backend."""

from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from tidemill.bench.plot import HEIGHT, WIDTH, Sample, svg

NAMES = {"svg": "http://www.w3.org/2000/svg"}
numbers = st.integers(0, 1000)


@given(st.lists(st.tuples(numbers, numbers, numbers), max_size=300))
def test_everything_is_inside(levels: list[tuple[int, int, int]]) -> None:
    """A line each for capacity, limit and calls in flight, bars where some were refused; all inside."""
    samples, calls, refused = [], 0, 0
    for number, (limit, in_flight, more) in enumerate(levels):
        calls += more
        refused += more // 10
        samples.append(
            Sample(
                seconds=number / 20, limit=limit, in_flight=in_flight, calls=calls, refused=refused, capacity=64
            )
        )
    root = ET.fromstring(svg("a <case>", samples))
    lines = root.findall("svg:polyline", NAMES)
    assert len(lines) == 3
    for line in lines:
        points = [point.split(",") for point in line.attrib["points"].split()]
        assert len(points) == len(samples)
        assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in points)
    bars = [rect for rect in root.findall("svg:rect", NAMES) if "fill-opacity" in rect.attrib]
    assert bool(bars) == (len(samples) > 1 and refused > samples[0].refused)
    assert all(float(bar.attrib["height"]) > 0 for bar in bars)
