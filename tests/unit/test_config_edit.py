"""What an edit is told to change, from the sections that it touches, is what the whole configurations differ in."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nat_rewriter.config import read_policy
from nat_rewriter.config.edit import Mentions, edit_between, excerpt, frame_of
from nat_rewriter.errors import ConfigError
from nat_rewriter.model.ruleset import LiveTable, Ruleset
from nat_rewriter.plan import set_changes
from nat_rewriter.render import outline, render
from nat_rewriter.render.increment import Difference, differences

ADDRESSES = {4: "198.51.100.{}", 6: "2001:db8::{}"}
CLIENTS = {4: "10.0.0.{}", 6: "fd00::{}"}
SETTINGS = ["", '[controller]\ncoexist = "refuse"\n', "[controller]\ntimeouts = { tcp_time_wait = 30 }\n"]


def slice_text(number: int, family: int = 4, width: int = 1024, protocols: str = "") -> str:
    """Return a slice, eight on an address."""
    address, first = ADDRESSES[family].format(1 + number // 8), 1024 * (1 + number % 8)
    ports = f'["{first}-{first + width - 1}"]'
    return f'[[slice]]\nname = "s{number}"\naddress = "{address}"\nports = {ports}\n{protocols}'


def rule_text(number: int, family: int = 4, name: str = "") -> str:
    return (
        f'[[snat]]\nname = "c{number}"\nsource = ["{CLIENTS[family].format(1 + number)}"]\n'
        f'slices = ["{name or f"s{number}"}"]\n'
    )


def sections_of(family: int, count: int = 20) -> list[str]:
    return [slice_text(one, family) for one in range(count)] + [rule_text(one, family) for one in range(count)]


def whole_text(sections: list[str], settings: str = "") -> bytes:
    return ("version = 1\n" + settings + "".join(sections)).encode()


def told(before: bytes, after: bytes) -> list[Difference] | None:
    """Return the differences that an edit tells; None where it leaves them to the whole."""
    frame, edit = frame_of(before), edit_between(before, after)
    assert frame is not None
    if edit is None:
        return None
    assert edit.of(before) == after
    found = excerpt(before, edit, frame)
    assert found == excerpt(before, edit, frame, Mentions(before))
    return differences(found.before, found.after) if found else None


def named(found: Difference, known: Ruleset) -> str:
    """Return the one set of a ruleset that a difference is about."""
    there = {**found.beside, **found.removed}
    names = [
        name
        for name, held in known.elements.items()
        if found.could_be(name)
        and there.items() <= held.items()
        and not any(key in held and key not in there for key in found.added)
    ]
    return names[0] if len(names) == 1 else ""


def assert_as_the_whole(before: bytes, after: bytes) -> bool:
    """Compare what an edit tells with the whole; tell whether it tells anything."""
    found = told(before, after)
    if found is None:
        return False
    old, new = render(read_policy(before)), render(read_policy(after))
    names = [named(one, old) for one in found]
    if "" in names:  # the kernel would not have what is expected, so that the whole is applied
        return False
    assert old.skeleton == new.skeleton
    whole = {one.set: (one.added, one.removed) for one in set_changes(new, LiveTable("", "", old.elements))}
    assert {name: (one.added, one.removed) for name, one in zip(names, found, strict=True)} == whole
    return True


def test_a_slice_that_shrinks_is_told_with_its_rule() -> None:
    sections = sections_of(4)
    before, sections[7] = whole_text(sections), slice_text(7, width=1000)
    assert assert_as_the_whole(before, whole_text(sections))
    found = told(before, whole_text(sections))
    assert found is not None
    assert {"owned4_512", "confine4_8", "clients*"} <= {one.name for one in found}


def test_a_slice_that_moves_to_another_address() -> None:
    sections = sections_of(4)
    before, sections[7] = whole_text(sections), slice_text(7).replace("100.1", "100.9")
    assert assert_as_the_whole(before, whole_text(sections))


def test_an_ipv6_slice_with_ports_that_another_one_has() -> None:
    """Its ranges are chains, which are there before and after."""
    sections = sections_of(6)
    whole = whole_text(sections)

    def other(place: int, section: str) -> bytes:
        return whole_text([*sections[:place], section, *sections[place + 1 :]])

    moved = other(7, slice_text(7, 6).replace("db8::1", "db8::9"))
    with_the_ports_of_another = other(7, slice_text(7, 6).replace("db8::1", "db8::9").replace("8192-9215", "2048-3071"))
    into_another_slice = other(27, rule_text(7, 6, "s9"))
    for one in (moved, with_the_ports_of_another, into_another_slice):
        assert assert_as_the_whole(whole, one)
        assert assert_as_the_whole(one, whole)
    more = whole_text([*sections[:19], slice_text(21, 6), *sections[19:]])
    assert assert_as_the_whole(whole, more)
    assert assert_as_the_whole(more, whole)
    assert told(whole, other(7, slice_text(7, 6, width=1000))) is None


def test_ipv4_slices_with_the_ports_of_an_ipv6_one_have_nothing_to_do_with_it() -> None:
    ipv4 = [slice_text(one).replace(f'"s{one}"', f'"t{one}"') for one in range(64)]
    sections = [*ipv4, *sections_of(6)]
    before, sections[64 + 7] = whole_text(sections), slice_text(7, 6).replace("db8::1", "db8::9")
    after = whole_text(sections)
    assert assert_as_the_whole(before, after)
    frame, edit = frame_of(before), edit_between(before, after)
    assert frame is not None
    assert edit is not None
    found = excerpt(before, edit, frame)
    assert found is not None
    assert not any(one.address.version == 4 for one in found.after.slices)


def test_slices_of_several_ranges_in_another_order() -> None:
    two = [slice_text(one).replace('"]', '", "60000-60001"]') for one in (3, 11)]
    before, after = ([slice_text(0), *each, rule_text(3), rule_text(11)] for each in (two, two[::-1]))
    assert told(whole_text(before), whole_text(after)) == []
    assert assert_as_the_whole(whole_text(before), whole_text(after))


@pytest.mark.parametrize(
    "other",
    [
        slice_text(7).replace("8192-9215", "1-5000"),  # the ports of its neighbours
        slice_text(8),  # a name twice
        slice_text(7).replace('"s7"', '"t7"'),  # a name that a rule still has
        slice_text(7) + "x = 1\n",
        slice_text(7).replace('"]', ""),
        slice_text(7) + '[controller]\nguard = "off"\n',
        "",
    ],
)
def test_what_is_wrong_is_left_to_the_whole(other: str) -> None:
    sections = sections_of(4)
    before, sections[7] = whole_text(sections), other
    assert told(before, whole_text(sections)) is None


@pytest.mark.parametrize(
    "more", ['[[pool]]\nname = "p"\n', "[controller]\n# \\\n", '[[slice]]\nname = """\n[[snat]]"""\n']
)
def test_what_is_not_plain_is_left_to_the_whole(more: str) -> None:
    assert frame_of(whole_text(sections_of(4), more)) is None


def test_an_address_in_another_spelling_is_not_plain() -> None:
    text = whole_text(sections_of(6))
    assert frame_of(text) is not None
    assert frame_of(text.replace(b"2001:db8::1", b"2001:DB8::1")) is None


def test_a_rule_that_an_inbound_one_depends_on_is_left_to_the_whole() -> None:
    sections = [*sections_of(4), '[[dnat]]\nname = "in"\nslice = "s7"\nto = "10.0.0.9"\n']
    before = whole_text(sections)
    assert frame_of(before) == {"version": 1}
    sections[6] = slice_text(6, width=1000)
    assert assert_as_the_whole(before, whole_text(sections))
    sections[7] = slice_text(7, width=1000)
    assert told(before, whole_text(sections)) is None


PROTOCOLS = st.sampled_from(["", "", "", 'protocols = ["tcp"]\n', 'protocols = ["tcp", "udp", "icmp"]\n'])
FAMILIES = st.sampled_from([4, 4, 6])


WIDTHS = st.sampled_from([1024, 1000, 999, 512, 10, 1, 1500])


@st.composite
def some_section(draw: st.DrawFn, family: int, number: int, is_rule: bool) -> str:
    """Draw a slice or a rule."""
    if not is_rule:
        of = draw(st.sampled_from([number, number, number, 5, 13, 18]))  # whose address and ports it has
        text = slice_text(of, family, draw(WIDTHS), draw(PROTOCOLS)).replace(f'"s{of}"', f'"s{number}"')
        text = text.replace('"]', '", "20"]') if draw(st.integers(0, 9)) == 0 else text
        return text.replace("100.1", "100.3") if draw(st.integers(0, 5)) == 0 else text
    text = rule_text(number, family, draw(st.sampled_from(["", "s0", "s3", "s3", "s11"])))
    return text + draw(st.sampled_from(["", "", "", 'iifname = "in0"\n', 'timestamps = "strip"\n']))


@st.composite
def some_edit(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draw a configuration, and one that differs from it in few sections."""
    family, settings = draw(FAMILIES), draw(st.sampled_from(SETTINGS))
    sections = sections_of(family, 12)
    for place in draw(st.lists(st.integers(0, 23), max_size=4)):
        sections[place] = draw(some_section(family, place % 12, place >= 12))
    before = whole_text(sections, settings)
    for _ in range(draw(st.integers(1, 3))):
        place, verb = draw(st.integers(0, 23)), draw(st.sampled_from(["replace"] * 5 + ["insert", "delete", "other"]))
        number = place % 12 if verb == "replace" else draw(st.integers(0, 14))
        text = draw(some_section(draw(FAMILIES) if verb == "other" else family, number, place >= 12))
        sections[place : place + (verb != "insert")] = [] if verb == "delete" else [text]
    return before, whole_text(sections, settings)


def is_sound(text: bytes) -> bool:
    try:
        read_policy(text)
    except ConfigError:
        return False
    return True


@given(some_edit())
def test_any_edit(edit: tuple[bytes, bytes]) -> None:
    before, after = edit
    assume(is_sound(before))
    if is_sound(after):
        assert_as_the_whole(before, after)
    else:
        assert told(before, after) is None


@given(some_edit())
def test_outlines_of_one_shape_have_one_skeleton(edit: tuple[bytes, bytes]) -> None:
    assume(is_sound(edit[0]) and is_sound(edit[1]))
    before, after = (outline(read_policy(text)) for text in edit)
    assert (before.shape == after.shape) == (before.skeleton() == after.skeleton())
