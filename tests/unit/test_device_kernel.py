"""The kernel with VFIO device files: the computations for its build."""

from __future__ import annotations

import pytest

from hawse.vm.image.packages import Package
from tests.support import device_kernel as kernel

SOURCE = """#include <linux/interval_tree.h>
#ifdef CONFIG_OTHER
#endif
EXPORT_SYMBOL_GPL(interval_tree_insert);

#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER
#ifdef CONFIG_INNER
#endif
void interval_tree_span_iter_next(void) {}
#endif
"""


def test_definitions_are_those_of_autoconf_h() -> None:
    """The option of a module ends in _MODULE, and IS_ENABLED() accepts either form (include/linux/kconfig.h)."""
    assert kernel.definitions({"IOMMUFD": "m", "VFIO_DEVICE_CDEV": "y"}) == [
        "-DCONFIG_IOMMUFD_MODULE=1",
        "-DCONFIG_VFIO_DEVICE_CDEV=1",
    ]


def test_span_iterator_leaves_out_what_the_kernel_exports() -> None:
    text = kernel.span_iterator(SOURCE)
    assert "void interval_tree_span_iter_next(void) {}\n" in text
    assert "interval_tree_insert" not in text
    assert text.count("#ifdef") == text.count("#endif") == 1


@pytest.mark.parametrize("text", ["", "void f(void) {}\n#endif\n", "#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER\n"])
def test_span_iterator_of_another_source_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="CONFIG_INTERVAL_TREE_SPAN_ITER"):
        kernel.span_iterator(text)


def test_digest_depends_on_every_input() -> None:
    package = Package("linux-source-6.12", "6.12.1-1", "00", "/cache/a.deb")
    other = Package("linux-source-6.12", "6.12.1-1", "01", "/cache/a.deb")
    digests = {kernel.digest(inputs) for inputs in [[package], [other], [package, other]]}
    assert len(digests) == 3
    assert kernel.digest([package]) == kernel.digest([package])
