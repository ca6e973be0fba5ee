"""Names of members: each its own, and with the machine that it runs on."""

import socket

from harness.study.leases import host_of, member_name


def test_a_member_has_a_name_of_its_own_that_says_where_it_runs() -> None:
    names = {member_name() for _ in range(50)}
    assert len(names) == 50
    assert {host_of(name) for name in names} == {socket.gethostname()}
    assert host_of("node-07-gpu-1a2b3c4d") == "node-07-gpu"
