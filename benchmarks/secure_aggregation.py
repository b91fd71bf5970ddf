"""Time per round of secure aggregation, beside its floor and beside Flower's SecAgg+ primitives.

    python benchmarks/secure_aggregation.py [--quick]

Client: all that it does in the five stages on a vector already on the grid (keys, shares, masks, signatures, verified
afresh as in a process of its own). Masking: the part of it that grows with the vector, its bytes included. Floor: n
ChaCha20 keystreams over the same bytes, the faster of one call and of blocks that stay in cache. Flower: quantize, one
NumPy mask a peer and its own, shares of two keys, as flwr's secaggplus_mod does (its key agreement left out). Server:
all of it, nobody dropped. The best of several runs, one thread.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import hypergeom

from medx.aggregation import ring
from medx.aggregation.coordinator import Coordinator
from medx.aggregation.integer_noise import NoiseStream, discrete_gaussian
from medx.aggregation.keys import _authentic_keys, _verified
from medx.aggregation.messages import Masked
from medx.aggregation.participant import Participant
from medx.aggregation.ring import encode
from medx.aggregation.roster import Parameters, Roster, simulated_roster

MODEL = bytes(32)
SIZES = (1_001, 60_000, 300_000, 11_000_000)
CLIENTS = (3, 10, 30, 100)


def best(function: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of ``repeats`` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def floor(dimension: int, n: int) -> float:
    """Seconds for n keystreams of 4 * dimension bytes."""
    keys = [os.urandom(32) for _ in range(n)]
    zeros, block = bytes(4 * dimension), bytes(min(4 * ring.BLOCK, 4 * dimension))
    buffer = bytearray(len(block))

    def whole() -> None:
        for key in keys:
            ring.keystream(key).update(zeros)

    def blocks() -> None:
        view, target = memoryview(block), memoryview(buffer)
        for key in keys:
            stream = ring.keystream(key)
            for start in range(0, 4 * dimension, len(block)):
                length = min(len(block), 4 * dimension - start)
                stream.update_into(view[:length], target[:length])

    repeats = 1 if dimension * n > 3e8 else 5
    return min(best(whole, repeats), best(blocks, repeats))


def masking(dimension: int, n: int) -> float:
    """Seconds for what grows with the vector: n masks onto it, and the message's bytes."""
    words, keys = np.zeros(dimension, np.uint32), [os.urandom(32) for _ in range(n)]

    def mask() -> None:
        ring.apply_masks(words, keys[::2], keys[1::2])
        Masked(0, MODEL, words).to_bytes()

    return best(mask, 1 if dimension * n > 3e8 else 5)


class Stopwatch:
    """Adds up the time of client 0 and of the server."""

    def __init__(self) -> None:
        self.client = self.server = 0.0

    def of_client(self, number: int, step: Callable[[], bytes]) -> bytes:
        """Run a client's step; only client 0 is timed, with no signature remembered."""
        if number != 0:
            return step()
        _verified.cache_clear()
        _authentic_keys.cache_clear()
        start = time.perf_counter()
        result = step()
        self.client += time.perf_counter() - start
        return result

    def of_server(self, step: Callable[[], object]) -> object:
        """Run and time a step of the server, with no signature remembered."""
        _verified.cache_clear()
        _authentic_keys.cache_clear()
        start = time.perf_counter()
        result = step()
        self.server += time.perf_counter() - start
        return result


def one_round(n: int, dimension: int, clients: list[Participant], roster: Roster, round: int) -> Stopwatch:
    """One round in which only client 0 and the server are timed; other clients' words are zeros under masks."""
    watch, server, words = Stopwatch(), Coordinator(roster, round, 0, MODEL), np.zeros(dimension, np.uint32)
    light = dimension * n > 3e8

    def collect(answers: Iterator[tuple[int, bytes]], receive: Callable[[int, bytes], None]) -> None:
        for number, answer in answers:
            watch.of_server(lambda i=number, a=answer: receive(i, a))

    begin = server.begin()
    collect(
        ((i, watch.of_client(i, lambda c=c: c.begin(begin, MODEL))) for i, c in enumerate(clients)), server.receive_keys
    )
    keys = watch.of_server(server.close_keys)
    collect(((i, watch.of_client(i, lambda c=c: c.share(keys))) for i, c in enumerate(clients)), server.receive_shares)
    inboxes = watch.of_server(server.close_shares)
    if light:
        watch.of_client(0, lambda: clients[0].mask(inboxes[0], words))
        return watch
    collect(
        ((i, watch.of_client(i, lambda i=i, c=c: c.mask(inboxes[i], words))) for i, c in enumerate(clients)),
        server.receive_masked,
    )
    survivors = watch.of_server(server.close_masked)
    collect(
        ((i, watch.of_client(i, lambda c=c: c.confirm(survivors))) for i, c in enumerate(clients)),
        server.receive_confirm,
    )
    request = watch.of_server(server.close_confirm)
    collect(
        ((i, watch.of_client(i, lambda c=c: c.unmask(request))) for i, c in enumerate(clients)), server.receive_unmask
    )
    watch.of_server(server.finish)
    return watch


def ours(n: int, dimension: int) -> tuple[float, float]:
    """Seconds of one client and of the server; the server's is NaN where only one client was computed."""
    parameters = Parameters(
        run_id="benchmark",
        dimension=dimension,
        scale=1.0,
        bound=1.0,
        num_rounds=100,
        noise_stddev=0,
        noise_multiplier=None,
        clip_norm=None,
        sampling_probability=None,
    )
    roster, identities = simulated_roster(parameters, n)
    clients = [Participant(roster, i, identities[i]) for i in range(n)]
    repeats = 1 if dimension * n > 2e7 else 5
    watches = [one_round(n, dimension, clients, roster, r) for r in range(repeats)]
    server = min(w.server for w in watches)
    return min(w.client for w in watches), float("nan") if dimension * n > 3e8 else server


def flower(n: int, dimension: int) -> float:
    """Seconds of one client with Flower's SecAgg+ primitives; masks are timed for at most five and scaled to n."""
    from flwr.common.secure_aggregation.crypto.shamir import create_shares
    from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition, parameters_mod
    from flwr.common.secure_aggregation.quantization import quantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    vector = [np.zeros(dimension, np.float32)]
    quantized = quantize(vector, 8.0, 1 << 22)
    wide = [quantized[0].astype(np.int64)]
    timed = min(n, 2 if dimension > 1e6 else 5)

    def mask() -> None:
        total = quantized
        for _ in range(timed):
            total = parameters_addition(total, pseudo_rand_gen(os.urandom(32), 1 << 32, [(dimension,)]))

    repeats = 1 if dimension > 1e6 else 3
    fixed = best(lambda: (quantize(vector, 8.0, 1 << 22), parameters_mod(wide, 1 << 32)), repeats)
    shares = best(lambda: [create_shares(bytes(32), 2 * n // 3 + 1, n) for _ in range(2)], 1)
    return fixed + best(mask, repeats) * n / timed + shares


def neighbours(n: int, corrupt: float, gone: float) -> int:
    """Fewest neighbours of each of ``n`` clients with which a graph of random neighbours (Bell et al. 2020) would do.

    There is a threshold that colluding neighbours of anybody reach with a chance of at most 2^-40, and those who stay
    miss with one of at most 2^-30, where ``corrupt`` and ``gone`` are fractions of all. That the graph stays connected
    is not asked. With n - 1 it is the sum as it is.
    """
    bad, staying = int(corrupt * n), n - 1 - int(gone * n)
    for k in range(1, n):
        threshold = int(hypergeom.isf(2.0**-40 / n, n - 1, bad, k)) + 1
        if threshold <= k and hypergeom.cdf(threshold - 1, n - 1, staying, k) <= 2.0**-30 / n:
            return k
    return n - 1


def main() -> None:
    """Print one table for clients and server, one for encoding and noise, and one of a graph's neighbours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out 11M parameters")
    sizes = SIZES[:-1] if parser.parse_args().quick else SIZES
    print(
        f"{'parameters':>10} {'n':>4} {'client ms':>10} {'masking ms':>10} {'floor ms':>9} "
        f"{'mask/floor':>10} {'client/floor':>12} {'Flower ms':>10} {'server ms':>10}"
    )
    for dimension in sizes:
        for n in CLIENTS:
            client, server = ours(n, dimension)
            least, masked = floor(dimension, n), masking(dimension, n)
            theirs = flower(n, dimension)
            print(
                f"{dimension:>10} {n:>4} {client * 1e3:>10.2f} {masked * 1e3:>10.2f} {least * 1e3:>9.2f} "
                f"{masked / least:>10.2f} {client / least:>12.2f} {theirs * 1e3:>10.2f} {server * 1e3:>10.2f}",
                flush=True,
            )
    print(f"\n{'parameters':>10} {'encode ms':>10} {'noise ms':>10} {'bytes a parameter':>18}")
    for dimension in sizes:
        vector, stream = np.random.default_rng(0).normal(size=dimension).astype(np.float32), NoiseStream.from_system()
        encoding = best(lambda v=vector: encode(v, 1024.0, 100.0), 3)
        noise = best(lambda s=stream, d=dimension: discrete_gaussian(s, 10**6, d), 2)
        wire = len(Masked(0, MODEL, np.zeros(dimension, np.uint32)).to_bytes()) / dimension
        print(f"{dimension:>10} {encoding * 1e3:>10.2f} {noise * 1e3:>10.2f} {wire:>18.3f}", flush=True)
    print(f"\n{'neighbours of':>13} {'n - 1':>6} {'1/3 + 1/3':>10} {'1/3 + 1/10':>10}   (colluding + gone)")
    for n in (30, 100, 300, 1000, 10_000):
        print(f"{n:>13} {n - 1:>6} {neighbours(n, 1 / 3, 1 / 3):>10} {neighbours(n, 1 / 3, 0.1):>10}", flush=True)


if __name__ == "__main__":
    main()
