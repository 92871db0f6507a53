"""ZeroTuning: scale the attention that goes to the first token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from headscope.errors import RequestError
from headscope.interventions.base import Heads, Method
from headscope.interventions.checks import Keys, as_heads, as_keys, number, on

if TYPE_CHECKING:
    from headscope.attention.edits import Edit
    from headscope.models.prompt import Prompt


@dataclass(frozen=True)
class ZeroTuning(Method):
    """Scale the attention to the first token (Han et al. 2025, "ZeroTuning", arXiv 2505.11739).

    With a the attention of a row to the token, the token gets gamma · a / (1 + (gamma − 1) · a), and all other keys
    share the rest in proportion to theirs.

    Parameters
    ----------
    heads
        (layer, head) pairs, or ``"all"``.
    gamma
        At least 0; 1 is neutral. Above 1 rows rest on the token more, below 1 they look at the text more. 0 takes the
        token away; rows that see nothing else, as the token's own, keep their attention.
    token
        Which token: its position, counted without padding, so that 0 is the first one that is attended to. A region,
        or several positions, for the paper's range of tokens.
    stack
        Which attention; the model's own by default.
    """

    name: ClassVar[str] = "zerotuning"

    heads: Heads = "all"
    gamma: float = 2.0
    token: Keys = (0,)
    stack: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", as_heads(self.heads, "ZeroTuning"))
        object.__setattr__(self, "gamma", number("ZeroTuning", "gamma", self.gamma))
        object.__setattr__(self, "token", as_keys(self.token, "ZeroTuning", "token"))

    @property
    def neutral(self) -> bool:
        """Whether gamma is 1."""
        return self.gamma == 1

    def neutralised(self) -> Self:
        """Return the method with gamma 1."""
        return replace(self, gamma=1.0)

    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return one change of the token's weight."""
        from headscope.attention.edits import AttentionEdit, Group, Scale

        heads = on(self.heads, model, "ZeroTuning", stack=self.stack)
        return (AttentionEdit(heads, (Group("token", self.token),), Scale((self.gamma,)), stack=self.stack),)


@dataclass(frozen=True)
class TokenCheck:
    """Whether heads rest on the token that ZeroTuning scales.

    Parameters
    ----------
    position, token
        Where it is in the prompt, and what it reads; the first one where there are several.
    mass
        Mean attention that it receives from the rows that can see it, over the heads.
    share
        Share of the heads that give it more than any other key that enough rows can see.
    rival, rival_mass
        The other key that receives most, and how much; None where there is no other.
    """

    position: int
    token: str
    mass: float
    share: float
    rival: int | None
    rival_mass: float

    @property
    def ok(self) -> bool:
        """Whether the token receives more than any other key."""
        return self.mass > self.rival_mass

    @property
    def note(self) -> str:
        """The finding in a sentence."""
        told = f"{self.token!r} at {self.position} receives {self.mass:.3f} of the attention"
        if self.ok:
            return f"{told}, more than any other token."
        return (
            f"{told}, less than the {self.rival_mass:.3f} of the token at {self.rival}: that may be the one to scale, "
            f"ZeroTuning(token={self.rival}, …)."
        )


def check_token(model: Any, prompt: Prompt | str, method: ZeroTuning | None = None) -> TokenCheck:
    """Look whether the token that ``method`` scales is the one that its heads rest on, in the untouched model.

    The first token of a prompt is not always a sink: some tokenizers add none to rest on, and chat templates and
    images may put another before it.

    Raises
    ------
    RequestError
        If the token is not in the prompt, or has no row after it.
    """
    import numpy as np

    from headscope.attention.requests import Received

    method = ZeroTuning() if method is None else method
    given = model.batch([prompt]).prompts[0]
    at = [p for key in method.token for p in (given.positions(key) if isinstance(key, str) else (key,))]
    wrong = [p for p in at if not -len(given) <= p < len(given)]
    if wrong or len(given) < 2:
        raise RequestError(
            f"ZeroTuning(token={list(method.token)}): this prompt has {len(given)} tokens, of which at least two are "
            "needed, one of them the token."
        )
    at = sorted({p % len(given) for p in at})
    heads = on(method.heads, model, "ZeroTuning", stack=method.stack)
    stack: Any = method.stack
    wanted = []
    for layer in sorted({layer for layer, _ in heads}):
        mine = [pair for pair in heads if pair[0] == layer]
        wanted.append(Received(mean=True, heads=mine, stack=stack, name=f"received{layer}"))
    run = model.run(given, wanted, logits=False)
    rows = [run[w.key].isel(batch=0).transpose("pair", "key").values for w in wanted]
    received = np.concatenate(rows).astype(np.float64)
    mine = received[:, at].sum(-1)
    # The newest keys are seen by few rows, and every row sees itself: they are no sinks.
    others = [k for k in range(len(given) - min(16, len(given) // 4)) if k not in at]
    if not others:
        return TokenCheck(at[0], given.tokens[at[0]], float(mine.mean()), 1.0, None, 0.0)
    means = received[:, others].mean(0)
    best = int(means.argmax())
    share = float((mine > received[:, others].max(-1)).mean())
    return TokenCheck(at[0], given.tokens[at[0]], float(mine.mean()), share, others[best], float(means[best]))
