"""A function of its parameters, to first order."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

import taskvec.tangent.convolutions
import taskvec.tangent.derivatives  # noqa: F401  they register their rules
from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.tangent.dual import Dual, primals
from taskvec.tangent.forward import NoRoute, NoTangent, Params, differentiable, jvp, named_in
from taskvec.tangent.verification import Probe, are_close, describe_disagreement, probe

Route = Literal["auto", "rules", "lean", "func"]
ROUTES = ("auto", "rules", "lean", "func")


class Linearization:
    """``f_lin(x; tau) = f(x; theta0) + J(x; theta0) tau``, with its exact gradient in tau.

    The gradient of a loss in tau is ``J^T g``, with g the loss's gradient in f_lin, whatever tau is. The
    routes give the same numbers at different costs (a forward pass is 1, a step of fine-tuning 3):

    - ``rules``: one run on dual numbers gives value, graph and tangent; the backward pass is the ordinary
      one. Cost 5, memory of ordinary fine-tuning.
    - ``lean``: forward mode without a graph, then an ordinary forward pass. Cost 6, the same memory, and the
      second pass may use any attention kernel.
    - ``func``: backward through ``torch.func.jvp``. Cost 5, the memory of both graphs; may be differentiated
      twice.
    - ``auto``: ``rules`` if its values and gradients equal those of ``func`` on the first inputs, else
      ``func``; ``lean`` takes its place where an operation has no second derivative.

    Args:
        function: ``f(params, *args, **kwargs)``, any nest of tensors out. It must not be random.
        theta0: tensors by name; those that a tau lacks are constant. Shared, not copied, never written.
        example: arguments to check the rules on now, instead of on the first ones that come.
        module: what the function runs; a message about a missing derivative names the part of it at fault.

    Source: Ortiz-Jimenez et al. 2023, arXiv:2305.12827, equation 3.
    """

    @checked
    def __init__(
        self,
        function: Callable[..., Any],
        theta0: Params,
        *,
        route: Route = "auto",
        example: tuple[Any, ...] | None = None,
        module: nn.Module | None = None,
    ) -> None:
        if route not in ROUTES:
            raise InputError(f"route: {route!r} is not one of {', '.join(ROUTES)}")
        self._function = named_in(module, function) if module is not None else function
        self.theta0 = {name: value.detach() for name, value in theta0.items()}
        self.route: Route = route
        self._narrow: dict[tuple[str, torch.dtype], tuple[int, Tensor]] = {}
        if route == "auto" and example is not None:
            self._settle(self.theta0, example, {})

    def __call__(self, tau: Params, *args: Any, **kwargs: Any) -> Any:
        """``f0 + J tau`` in the structure of f's output; differentiable in the tensors of ``tau``.

        Args:
            tau: a displacement by name, of theta0's shapes, any float dtype. A name that is not there has no
                tangent, and costs none.

        Raises: InputError for a tau that names none of theta0's tensors, or others; NoTangent when a
            derivative is missing.
        """
        return self._reached(_sum(*self._value_and_slope(tau, args, kwargs)), tau)

    def jvp(self, tau: Params, *args: Any, **kwargs: Any) -> Any:
        """``J tau`` alone, as ``f0 + J tau`` is called and at the cost of it; differentiable in ``tau``."""
        value, slope = self._value_and_slope(tau, args, kwargs)
        # By some routes the graph is that of the value: zero, with its gradient.
        carried = tree_map(lambda leaf: leaf - leaf.detach() if differentiable(leaf) else leaf, value)
        return self._reached(_sum(carried, slope), tau)

    def _value_and_slope(self, tau: Params, args: Any, kwargs: Any) -> tuple[Any, Any]:
        self._check(tau)
        if self.route == "auto":
            self._settle(tau, args, kwargs)
        if self.route == "rules":
            return self._by_rules(tau, args, kwargs)
        if self.route == "lean":
            return self._lean(tau, args, kwargs)
        return jvp(self._bind(args, kwargs), self.theta0, tau)

    def _reached(self, out: Any, tau: Params) -> Any:
        """The output, if it depends on tau. Raises: NoTangent."""
        if torch.is_grad_enabled() and any(step.requires_grad for step in tau.values()):
            _check_reached(out, lambda leaf: isinstance(leaf, Tensor) and leaf.requires_grad)
        return out

    def jvps(self, taus: Sequence[Params], *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        """``f(theta0)`` and ``J tau_t`` for every t, without a graph; in one run by ``rules``.

        A tau may be on another device than theta0.

        Returns: f0, and for each tau the same structure; what is no floating-point tensor is as in f0.
        Cost: 1 + 2T forward passes; 3T by the other routes.
        """
        for tau in taus:
            self._check(tau)
        if not taus:
            raise InputError("taus: none given, expected one or more displacements")
        with torch.no_grad():
            if self.route == "auto":
                self._settle(taus[0], args, kwargs)
            if self.route == "rules":
                return self._many(taus, args, kwargs)
            pairs = [jvp(self._bind(args, kwargs), self.theta0, tau) for tau in taus]
        return pairs[0][0], [slope for _, slope in pairs]

    def _dual(self, name: str, steps: Sequence[Tensor | None]) -> Dual:
        """A parameter and its displacements; what autograd sends back to it goes to the first of them."""

        def at(value: Tensor) -> Dual:
            anchored = value if steps[0] is None else _anchor(steps[0], value)
            return Dual(anchored, [None if step is None else step.detach().to(value) for step in steps])

        dual = at(self.theta0[name])
        dual.shortcut = lambda dtype: at(self._narrow_theta0(name, dtype))
        return dual

    def _narrow_theta0(self, name: str, dtype: torch.dtype) -> Tensor:
        """theta0 in autocast's dtype: converted once, since it never changes."""
        value = self.theta0[name]
        version, kept = self._narrow.get((name, dtype), (-1, value))
        if version != value._version:
            version, kept = value._version, value.to(dtype)
            self._narrow[name, dtype] = version, kept
        return kept

    def _by_rules(self, tau: Params, args: Any, kwargs: Any) -> tuple[Any, Any]:
        duals = {name: self._dual(name, [step]) for name, step in tau.items()}
        out = self._bind(args, kwargs)({**self.theta0, **duals})
        return primals(out), tree_map(lambda leaf: _slope(leaf, 0), out)

    def _lean(self, tau: Params, args: Any, kwargs: Any) -> tuple[Any, Any]:
        function = self._bind(args, kwargs)
        with torch.no_grad():
            _, slope = jvp(function, self.theta0, {name: step.detach() for name, step in tau.items()})
        anchored = {name: _anchor(step, self.theta0[name]) for name, step in tau.items()}
        return function({**self.theta0, **anchored}), slope

    def _many(self, taus: Sequence[Params], args: Any, kwargs: Any) -> tuple[Any, list[Any]]:
        names = dict.fromkeys(name for tau in taus for name in tau)
        duals = {name: self._dual(name, [tau.get(name) for tau in taus]) for name in names}
        out = self._bind(args, kwargs)({**self.theta0, **duals})
        _check_reached(out, lambda leaf: isinstance(leaf, Dual))
        return primals(out), [
            tree_map(lambda leaf, at=place: _slope(leaf, at), out) for place in range(len(taus))
        ]

    def _bind(self, args: Any, kwargs: Any) -> Callable[[Params], Any]:
        return lambda params: _check_output(self._function(params, *args, **kwargs))

    def _check(self, tau: Params) -> None:
        unknown = [name for name in tau if name not in self.theta0]
        if unknown or not tau:
            shown = repr(unknown[0]) if unknown else "nothing"
            raise InputError(
                f"tau names {shown}, expected some of the {len(self.theta0)} parameters of theta0"
            )
        for name, step in tau.items():
            if step.shape != self.theta0[name].shape:
                raise InputError(
                    f"tau: {name!r} has shape {tuple(step.shape)}, expected {tuple(self.theta0[name].shape)}"
                )

    def _settle(self, names: Iterable[str], args: Any, kwargs: Any) -> None:
        """Decide on these inputs: ``rules``, or else ``func``, or ``lean`` where func has no gradient."""
        names = list(names)

        def try_route(route: Route) -> Probe:
            lin = Linearization(self._function, self.theta0, route=route)
            return probe(lin, self.theta0, names, args, kwargs)

        rules: Probe | Exception
        try:
            rules = try_route("rules")
        except NoRoute:
            raise
        except Exception as error:  # an error of the inputs comes again by the next route
            rules = error
        other: Route = "func"
        try:
            expected = try_route(other)
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            other = "lean"
            expected = try_route(other)
        if isinstance(rules, Exception):
            reason = f"they fail with {type(rules).__name__}: {rules}"
        else:
            reason = describe_disagreement(rules, expected)
        if reason:
            self._refuse_random(args, kwargs)
            if not isinstance(rules, NoTangent):
                warnings.warn(f"tangent rules are not used for this model: {reason}", stacklevel=4)
        self.route = other if reason else "rules"

    def _refuse_random(self, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            first, second = (
                list(filter(differentiable, tree_leaves(self._bind(args, kwargs)(self.theta0))))
                for _ in range(2)
            )
        if not are_close(first, second):
            raise NoRoute("the function is random: it gives different values on the same inputs")


class _Anchor(torch.autograd.Function):
    """theta0 on the way forward; what comes back is the gradient in tau."""

    @staticmethod
    def forward(ctx: Any, tau: Tensor, theta0: Tensor) -> Tensor:
        ctx.dtype = tau.dtype
        return theta0.view_as(theta0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope.to(ctx.dtype), None


def _anchor(tau: Tensor, theta0: Tensor) -> Tensor:
    anchored: Tensor = _Anchor.apply(tau, theta0)  # type: ignore[no-untyped-call]
    return anchored


def _sum(value: Any, slope: Any) -> Any:
    """Value plus tangent, leaf by leaf; what can have no tangent stays."""
    leaves, spec = tree_flatten(value)
    return tree_unflatten(
        [
            leaf + step if differentiable(leaf) else leaf
            for leaf, step in zip(leaves, tree_leaves(slope), strict=True)
        ],
        spec,
    )


def _slope(leaf: Any, direction: int) -> Any:
    if not isinstance(leaf, Dual):
        return torch.zeros_like(leaf) if differentiable(leaf) else leaf
    step = leaf.tangents[direction]
    return torch.zeros_like(leaf.primal) if step is None else step


def _check_output(out: Any) -> Any:
    """What a function returned, if its tensors can be found and have tangents."""
    tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    if not tensors:
        raise NoTangent(
            f"the output is a {type(out).__name__}, in which no tensor is found; return tensors in tuples, "
            "lists or dicts, or register the class by torch.utils._pytree.register_dataclass"
        )
    if any(leaf.is_complex() for leaf in tensors):
        raise NoTangent("an output is complex; return torch.view_as_real of it")
    return out


def _check_reached(out: Any, moves: Callable[[Any], bool]) -> None:
    if not any(map(moves, tree_leaves(out))):
        raise NoTangent("no output depends on the chosen parameters, or their derivative was lost on the way")
