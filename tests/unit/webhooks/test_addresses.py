"""The URLs and addresses of webhooks: a corpus of attacks is refused, and what the operator allows is not."""

from contextlib import suppress
from ipaddress import IPv4Network, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.schemas.webhooks.addresses import UrlRefused, checked_url, is_reachable, networks

PRIVATE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.254",
    "127.0.0.1", "127.255.255.254", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.254",
    "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "168.63.129.16", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
    "2001:0:7f00:1::", "2001:db8::1", "2001::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1",
    "fe80::1%eth0", "fec0::1", "ff02::1", "100::1", "2600::5efe:7f00:1", "2600::200:5efe:a9fe:a9fe", "4000::1",
    "localhost", "", "1.1.1", "[::1]",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"]
BAD_URLS = [
    "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com", "//example.com",
    "example.com", "https://", "https:///x", "https://user@example.com/", "https://u:p@example.com/",
    "https://example.com@127.0.0.1/", "https://example.com#@127.0.0.1/", "https://127.0.0.1#.example.com/",
    "https://127.0.0.1\\@example.com/", "https://example.com\\.127.0.0.1/", "https://127.0.0.1/", "https://[::1]/",
    "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[0:0:0:0:0:0:0:1]/", "https://127.1/",
    "https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/", "https://0x7f.1/", "https://017700000001/",
    "https://0177.0.0.1/", "https://127.0.1/", "https://0/", "https://0x0/", "https://169.254.169.254/latest",
    "https://425.510.425.510/", "https://2852039166/", "https://0xa9fea9fe/", "https://[fd00:ec2::254]/",
    "https://localhost/", "https://LOCALHOST./", "https://a.localhost/", "https://127.0.0.1./",
    "https://\uff11\uff12\uff17.0.0.1/", "https://\u24db\u24de\u24d2alhost/", "https://exam ple.com/",
    "https://example.com/\n", "https://example.com/\x00", "\thttps://example.com/", "https://example.com:22/",
    "https://example.com:0/", "https://example.com:65536/", "https://example.com:x/", "https://[::1/",
    "https://[fe80::1%25eth0]/", "https://-example.com/", "https://ex!ample.com/",
    "https://example.com/" + "x" * 2048,
    "https://10.0.0.1:8443/", "https://192.168.1.1/", "https://172.16.0.1/", "https://100.64.0.1/",
]  # fmt: skip
GOOD_URLS = [
    "https://example.com", "https://example.com/a?b=c", "https://a-b.example.com:8443/", "https://1.1.1.1/x",
    "HTTPS://Example.COM/", "https://[2606:4700:4700::1111]/", "https://xn--bcher-kva.example/", "https://a_b.com:443",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_special_addresses_are_not_reachable(address):
    """In each form that a socket may name them."""
    assert not is_reachable(address, ())


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_reachable(address):
    """Also through a translation to IPv4."""
    assert is_reachable(address, ())
    assert not is_reachable(address, (), public=False)


@pytest.mark.parametrize("url", BAD_URLS)
def test_bad_urls_are_refused(url):
    """Before a name is resolved."""
    with pytest.raises(UrlRefused):
        checked_url(url, ())


@pytest.mark.parametrize("url", GOOD_URLS)
def test_good_urls_stay_as_they_are(url):
    """Nothing is normalised."""
    assert checked_url(url, ()) == url


def test_the_operator_allows_networks():
    """Then also without TLS; the connection checks the address of a name."""
    allowed = networks(["127.0.0.0/8", "fd00::/8"])
    for url in ("http://127.0.0.1:8080/", "https://[fd00::1]/", "http://localhost/", "http://hooks.internal/"):
        assert checked_url(url, allowed) == url
    assert is_reachable("127.1.2.3", allowed, public=False)
    assert is_reachable("::ffff:127.0.0.1", allowed)
    assert not is_reachable("10.0.0.1", allowed)
    assert not is_reachable("::127.0.0.1", allowed)
    with pytest.raises(UrlRefused):
        checked_url("http://10.0.0.1/", allowed)
    with pytest.raises(UrlRefused, match="http:// for networks of the setting webhook_allow"):
        checked_url("http://127.0.0.1:8080/", ())


def embedding(address):
    """The IPv6 addresses that lead to an IPv4 address."""
    number = int(address)
    yield IPv6Address((0xFFFF << 32) | number)
    yield IPv6Address((0x0064FF9B << 96) | number)
    yield IPv6Address((0x2002 << 112) | (number << 80))
    yield IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF))
    yield IPv6Address((0x2600 << 112) | (0x5EFE << 32) | number)


special = st.sampled_from([IPv4Network(each) for each in ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16")])


@given(special, st.integers(0, 2**32 - 1))
def test_no_embedding_hides_an_address(network, offset):
    """Whatever leads to a private address is refused; the network of the embedding being allowed is not enough."""
    address = network[offset % network.num_addresses]
    assert not is_reachable(str(address), ())
    for each in embedding(address):
        assert not is_reachable(str(each), ()), each
    assert is_reachable(str(address), (network,))


@given(st.ip_addresses(v=6))
def test_only_global_unicast_is_reachable(address):
    """IPv6 addresses of 2000::/3, and those that a gateway translates to IPv4."""
    is_translated = address.ipv4_mapped is not None or address in ip_network("64:ff9b::/96")
    if is_reachable(str(address), ()):
        assert is_translated or address in ip_network("2000::/3")


@given(st.ip_addresses(v=4))
def test_python_agrees(address):
    """Nothing is reachable that Python's table does not call global."""
    if is_reachable(str(address), ()):
        assert address.is_global
        assert not address.is_multicast


@given(st.text(max_size=60), st.sampled_from(["https://", "https://example.com", "https://127.0.0.1", "http:"]))
def test_an_accepted_url_names_a_host(text, start):
    """Whatever the text is, the answer is a refusal or a URL with a host, which is no private address."""
    try:
        url = checked_url(start + text, ())
    except UrlRefused:
        return
    parts = urlsplit(url)
    assert (parts.scheme, parts.username) == ("https", None)
    assert parts.hostname
    with suppress(ValueError):
        assert ip_address(parts.hostname).is_global
