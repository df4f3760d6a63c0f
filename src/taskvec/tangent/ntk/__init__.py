"""The empirical neural tangent kernel of any module, layer by layer, and its products without the kernel."""

from taskvec.tangent.ntk.contraction import Mode
from taskvec.tangent.ntk.kernel import ntk
from taskvec.tangent.ntk.product import ntk_operator, ntk_product

__all__ = ["Mode", "ntk", "ntk_operator", "ntk_product"]
