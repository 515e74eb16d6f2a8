"""Which clusters are joined: none that is open to all, unless that is wanted, and none that is not there."""

from pathlib import Path

import pytest

from tests.ray_cluster import free_port, local_cluster
from tests.workers.cluster.pools import pool_on
from workers.errors import NoWorker
from workers.pool import create_cluster_pool

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


async def test_an_open_cluster_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    with local_cluster(with_token=False) as cluster:
        cluster.add_node("a")
        with pytest.raises(NoWorker, match=r"asks for no token.*--allow-open-cluster"):
            await pool_on(cluster, tmp_path).start()
        pool = pool_on(cluster, tmp_path, allow_open=True)
        await pool.start()
        assert [status.node for status in pool.status()] == ["a"]
        await pool.close()


@pytest.mark.parametrize(
    ("address", "reason"), [("127.0.0.1:{free_port}", "nothing answers"), ("auto", "no address")]
)
async def test_a_cluster_that_is_not_there(address: str, reason: str, tmp_path: Path) -> None:
    address = address.format(free_port=free_port())
    pool = create_cluster_pool(address, ["cpu"], data_dir=str(tmp_path), data_max_bytes=1 << 20)
    with pytest.raises(NoWorker, match=reason):
        await pool.start()
