"""lm-evaluation-harness's model interface, answered for all copies of a model in one pass.

Texts are tokenized, cut and templated by its own `hf` model; only what that one asks its network for is
computed here. Shape suffixes: B rows of a batch, T positions, M positions that are scored, V vocabulary, Q
tokens whose probability is asked, K copies.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)

from harness.data.rows import NO_LOSS, Batch
from harness.engine.forward import target_logits
from harness.errors import RequestError
from harness.evals.copies import Copies
from harness.evals.decoding import TextStops
from harness.evals.generation import Decoding, generate_copies
from harness.evals.token_loss import repeated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK_ELEMENTS = 2**24
"""Log-probabilities in float32 at a time, 64 MiB."""
_POSITIONS = 2**14
"""Positions that copies may always have together in a pass, however short the rows are."""
_MEANT = {"do_sample", "temperature"}
"""Settings of generation that greedy decoding has no other choice in."""

_TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""Texts, tokens of the context, tokens of the continuation."""


@dataclass(frozen=True, slots=True)
class _Described:
    """What lm-evaluation-harness looks at of a model that it does not call."""

    device: torch.device
    config: Any


@dataclass(slots=True)
class _Row:
    """One input, and the continuations that end with a token after it: they differ in that one alone."""

    ids: list[int]
    ends: list[tuple[int, int, int]] = field(default_factory=list)
    """Request's number, its continuation's length, its last token."""

    @property
    def scored(self) -> int:
        """Positions at the end of the input that a continuation is scored at."""
        return max(length for _, length, _ in self.ends)


_Hf: Any = HFLM
"""Its decorator hides from type checkers what it is."""


class PackedLM(_Hf):
    """Answers of one copy of a model after the other, all of them computed when the first one's are asked."""

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        device: torch.device,
        copies: Copies,
        *,
        batch_size: int,
    ) -> None:
        """`model` is in evaluation mode."""
        super().__init__(
            pretrained=_Described(device, model.config),
            backend="causal",
            tokenizer=copy.deepcopy(tokenizer),  # which it gives a padding token, where it has none
            batch_size=batch_size,
        )
        self.copy = 0
        """Which copy answers."""
        self.num_requests = 0
        """Requests that were answered, each counted once for all copies."""
        self._network = model
        self._copies = copies
        self._answers: dict[str, list[Any]] = {}

    # The three kinds of requests -----------------------------------------------------------------

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is the greedy one."""
        answers = self._known("loglikelihood", requests, super().loglikelihood)
        return [
            (float(likelihood_K[self.copy]), bool(greedy_K[self.copy]))
            for likelihood_K, greedy_K in answers
        ]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of each text, in windows as long as the model's context."""
        answers = self._known("loglikelihood_rolling", requests, super().loglikelihood_rolling)
        every_K = np.zeros(self._copies.count)  # a text without a token has none
        return [float((answer + every_K)[self.copy]) for answer in answers]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the greedy answer to each request, up to one of its stop texts."""
        answers = self._known("generate_until", requests, self._generated)
        return [answer_K[self.copy] for answer_K in answers]

    def _known(
        self, kind: str, requests: Sequence[Any], compute: Callable[..., list[Any]]
    ) -> list[Any]:
        """Return the answers of all copies to all requests of a kind, which are asked once for each copy."""
        if self.copy == 0:
            self._answers[kind] = compute(requests, disable_tqdm=True)
            self.num_requests += len(requests)
        assert len(self._answers[kind]) == len(requests)
        return self._answers[kind]

    # Likelihoods ---------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self,
        requests: Sequence[_TokenRequest],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return log-likelihoods [K] and whether the copies would say so [K], for each request.

        Rows and batches are those of lm-evaluation-harness: longest first, one row for the continuations that
        differ in their last token.
        """
        rows = self._rows(requests)
        size, count = override_bs or int(self.batch_size), self._copies.count
        likelihood_NK = np.zeros((len(requests), count))
        greedy_NK = np.zeros((len(requests), count), dtype=bool)
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            positions = len(chosen) * len(chosen[0].ids)
            at_once = max(_POSITIONS, size * len(rows[0].ids)) // positions
            for some in self._copies.parts(at_once):
                for number, scores in zip(some, self._scores(chosen, some), strict=True):
                    for (request, *_), (likelihood, greedy) in zip(
                        _ends(chosen), scores, strict=True
                    ):
                        likelihood_NK[request, number] = likelihood
                        greedy_NK[request, number] = greedy
        return list(zip(likelihood_NK, greedy_NK, strict=True))

    def _rows(self, requests: Sequence[_TokenRequest]) -> list[_Row]:
        """Return what is fed to the model, in the order in which it is."""
        rows: dict[tuple[int, ...], _Row] = {}
        for number, (_, context, continuation) in enumerate(requests):
            assert context
            if not 0 < len(continuation) <= self.max_length:
                raise RequestError(
                    f"eval.tasks: a continuation has {len(continuation)} tokens, and the model's context "
                    f"{self.max_length}"
                )
            given = (*context, *continuation[:-1])
            row = rows.setdefault(given, _Row(list(given[-self.max_length :])))
            row.ends.append((number, len(continuation), continuation[-1]))
        # By the whole text as lm-evaluation-harness sorts, before it is cut.
        return [
            row
            for _, row in sorted(
                rows.items(), key=lambda item: (-len(item[0]), (*item[0], item[1].ends[0][2]))
            )
        ]

    def _scores(
        self, rows: Sequence[_Row], some: Sequence[int]
    ) -> Iterator[list[tuple[float, bool]]]:
        """Yield for each of some copies what each continuation of the rows scores."""
        batch = _batch(rows)
        asked = _asked(rows)
        for likelihood_Q, greedy_Q in self._token_scores(batch, asked, some):
            parts = zip(
                likelihood_Q.split(asked.lengths), greedy_Q.split(asked.lengths), strict=True
            )
            yield [(float(likelihood.sum()), bool(greedy.all())) for likelihood, greedy in parts]

    def _token_scores(
        self, batch: Batch, asked: "_Asked", some: Sequence[int]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return for each of some copies the log-probability [Q] of each token asked, and if it is greedy."""
        quick = self._copies.quick
        if quick is not None and asked.one_each:
            scores = [of_copy.cpu() for of_copy in quick.score(some, batch)]
            return [
                (-loss_M[asked.position_Q], right_M[asked.position_Q] > 0)
                for loss_M, right_M in scores
            ]
        with self._copies.sharing(some, len(batch.input_ids_BT)), torch.no_grad():
            there = repeated(batch, len(some)).to(self.device)
            logits_MV, _ = target_logits(self._network, there)
        return [_of_tokens(logits, asked) for logits in logits_MV.split(batch.num_loss_tokens)]

    # Answers -------------------------------------------------------------------------------------

    def _generated(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[str, ...]]:
        """Return the answers of all copies to each request; those asked alike are decoded together."""
        alike: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            alike[repr(request.args[1])].append(number)
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        found: list[tuple[str, ...]] = [()] * len(requests)
        for numbers in alike.values():
            settings: dict[str, Any] = dict(
                normalize_gen_kwargs(requests[numbers[0]].args[1], self.max_gen_toks)
            )
            until = handle_stop_sequences(settings.pop("until", None), eos=eos)
            max_new_tokens = settings.pop("max_gen_toks")
            _check_greedy(settings, requests[numbers[0]].task_name)
            contexts = [requests[number].args[0] for number in numbers]
            answers = self._continued(contexts, max_new_tokens, until)
            for number, answer_K in zip(numbers, answers, strict=True):
                found[number] = answer_K
        return found

    def _continued(
        self, contexts: Sequence[str], max_new_tokens: int, until: list[str]
    ) -> Iterator[tuple[str, ...]]:
        room = self.max_length - max_new_tokens
        if room < 1:
            raise RequestError(
                f"eval.tasks: answers of up to {max_new_tokens} tokens leave no room for a prompt in the "
                f"model's context of {self.max_length}; give the task a smaller max_gen_toks in its "
                "generation_kwargs"
            )
        prompts = [self.tok_batch_encode([context])[0][0, -room:].tolist() for context in contexts]
        stops = TextStops.of(until, self.tokenizer)
        generated = generate_copies(
            self._network,
            self.tokenizer,
            prompts,
            Decoding(
                batch_size=int(self.batch_size),
                max_new_tokens=max_new_tokens,
                text_stops=stops,
            ),
            self.device,
            self._copies,
        )
        for text_K in zip(*(each.texts for each in generated), strict=True):
            yield tuple(postprocess_generated_text(text, until, None) for text in text_K)


def _check_greedy(settings: dict[str, Any], task: str | None) -> None:
    """Refuse an answer that is drawn or searched for: answers here are the likeliest tokens."""
    others = settings.keys() - _MEANT
    if settings.get("do_sample") or others:
        given = ", ".join(f"{key}={settings[key]}" for key in sorted(settings))
        raise RequestError(
            f"eval.tasks: {task or 'a task'} asks for generation with {given}; answers here are greedy: "
            "do_sample=false, and of the other generation_kwargs until and max_gen_toks"
        )


def _ends(rows: Sequence[_Row]) -> Iterator[tuple[int, int, int]]:
    return (end for row in rows for end in row.ends)


def _batch(rows: Sequence[_Row]) -> Batch:
    """Return rows padded at their end; loss is on what is scored, the last target that of any of its ends."""
    longest = max(len(row.ids) for row in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.int64)
    targets_BT = torch.full_like(ids_BT, NO_LOSS)
    for index, row in enumerate(rows):
        ids = torch.tensor(row.ids)
        ids_BT[index, : len(ids)] = ids
        targets = torch.cat([ids[1:], ids.new_tensor([row.ends[0][2]])])
        targets_BT[index, len(ids) - row.scored : len(ids)] = targets[-row.scored :]
    return Batch.of(ids_BT, targets_BT)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Which token's probability is asked at which scored position of a batch, end after end."""

    position_Q: torch.Tensor
    token_Q: torch.Tensor
    lengths: list[int]
    """Tokens of each continuation."""
    one_each: bool
    """Whether every row ends in one way."""


def _asked(rows: Sequence[_Row]) -> _Asked:
    positions: list[int] = []
    tokens: list[int] = []
    first = 0
    for row in rows:
        first += row.scored
        for _, length, last in row.ends:
            positions += range(first - length, first)
            tokens += [*row.ids[len(row.ids) - length + 1 :], last]
    return _Asked(
        position_Q=torch.tensor(positions),
        token_Q=torch.tensor(tokens),
        lengths=[length for _, length, _ in _ends(rows)],
        one_each=all(len(row.ends) == 1 for row in rows),
    )


def _of_tokens(logits_MV: torch.Tensor, asked: _Asked) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability [Q] of each token asked, float32 on the CPU, and whether it is greedy."""
    likelihood_Q = torch.empty(len(asked.token_Q))
    greedy_Q = torch.empty(len(asked.token_Q), dtype=torch.bool)
    size = max(1, math.floor(_CHUNK_ELEMENTS / logits_MV.shape[-1]))
    for number, logits in enumerate(logits_MV.split(size)):
        place_Q = asked.position_Q - number * size
        here = ((place_Q >= 0) & (place_Q < len(logits))).nonzero().squeeze(1)
        place, token = place_Q[here].to(logits.device), asked.token_Q[here].to(logits.device)
        log_probs = F.log_softmax(logits.float(), dim=-1)
        likelihood_Q[here] = log_probs[place, token].cpu()
        greedy_Q[here] = (logits.argmax(dim=-1)[place] == token).cpu()
    return likelihood_Q, greedy_Q
