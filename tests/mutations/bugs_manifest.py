"""Bugs of the rules by which compiled kernels are launched, and of what reads them."""

from __future__ import annotations

from functools import partial

from plant import Mutation

forms = partial(Mutation, "manifest", "manifest/forms.py")
launch = partial(Mutation, "manifest", "manifest/launch.py")
expressions = partial(Mutation, "manifest", "manifest/expressions.py")
text = partial(Mutation, "manifest", "manifest/text.py")
build = partial(Mutation, "manifest", "manifest/build.py")
RULES = "test_manifest.py::test_a_rule_launches_what_the_op_launches"
MANIFEST = [
    forms(
        f"{RULES}[attention]",
        "the logits' scale without log2(e)",
        '"scale": ("scale", attend.LOG2_E)',
        '"scale": ("scale", 1.0)',
    ),
    forms(
        f"{RULES}[attention]",
        "values by the steps of queries",
        '("v", "L"), ("out", "N")):',
        '("v", "N"), ("out", "N")):',
    ),
    forms(
        f"{RULES}[attention_bias]",
        "the mask of the first sample for all",
        '"bias_sample": "L" if biased else "0"',
        '"bias_sample": "0"',
    ),
    forms(
        f"{RULES}[ada_norm]",
        "a shared scale stepped through",
        'f"({samples} != 1) * {tokens} * {width}"',
        'f"{tokens} * {width}"',
    ),
    forms(
        f"{RULES}[layer_norm]",
        "the weight for the bias",
        '"bias": names[-1]',
        '"bias": names[0]',
    ),
    launch(
        "test_manifest.py::test_what_a_kernel_does_not_take",
        "an address that is no multiple taken",
        "if address % argument.divisible:",
        "if address % argument.divisible > 8:",
    ),
    launch(
        "test_manifest.py::test_what_a_kernel_does_not_take",
        "requirements not looked at",
        """    sizes = bind(kernel, shapes)
    if not all(evaluate(code, sizes) for code in kernel.requires):""",
        """    sizes = bind(kernel, shapes)
    if not any(evaluate(code, sizes) for code in kernel.requires):""",
    ),
    expressions(
        "test_manifest.py::test_an_expression_is_what_its_parts_make_it",
        "quotients rounded down",
        "-(-a // b),",
        "a // b,",
    ),
    expressions(
        "test_manifest.py::test_an_expression_of_several_terms_keeps_pythons_order",
        "the last of several terms dropped",
        "for other in rest:",
        "for other in rest[:1]:",
    ),
    text(
        "test_manifest.py::test_a_manifest_that_breaks_its_format_is_not_written",
        "a file outside of the folder",
        "[A-Za-z0-9][A-Za-z0-9._-]{0,127}",
        "[A-Za-z0-9./][A-Za-z0-9./_-]{0,127}",
    ),
    build(
        "test_manifest.py::test_nothing_is_left_of_a_folder_that_could_not_be_filled",
        "half a folder left",
        "shutil.rmtree(staging, ignore_errors=True)",
        'shutil.rmtree(staging / "none", ignore_errors=True)',
    ),
    build(
        "test_manifest.py::test_a_kernel_that_the_rules_cannot_launch_is_refused",
        "parameters not counted",
        "if sizes != [size_of(argument) for argument in arguments]:",
        "if len(sizes) > 2 * len(arguments):",
    ),
]
