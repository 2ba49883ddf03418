"""Builds the package `ris_fusion`; its name, version and requirements stand in pyproject.toml.

In a checkout each room is a top-level package: `from utils.errors import InputError`. Installed like that, `utils` and
`data` would collide with other programs' packages of these names. The build therefore copies the rooms, engine.py and
predictor.py into `ris_fusion` and puts that name in front of each import of them. Scripts of the checkout stay out.
"""
import ast
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel
from setuptools.errors import SetupError

ROOMS = ("bert", "data", "evaluation", "models", "training", "utils")
MODULES = ("engine", "predictor")
OWN = "|".join(ROOMS + MODULES)
IMPORT = re.compile(rf"""(from |import |[\w.]*\b(?:find_spec|import_module)\(["'])(?=(?:{OWN})\b)""".encode())


def imported_names(node: ast.AST) -> list[str]:
    """The modules that a statement, or a call of find_spec or import_module, names in full."""
    if isinstance(node, ast.ImportFrom):
        return [] if node.level else [node.module]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("find_spec", "import_module", "__import__")):
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        return [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return []


def with_prefix(file: str) -> bytes:
    """The source of a module with `ris_fusion.` in front of each import of a room.

    Raises:
        SetupError: an import of a form in which the prefix would not do.
    """
    lines = Path(file).read_bytes().splitlines(keepends=True)
    for node in ast.walk(ast.parse(b"".join(lines), file)):
        if not any(re.fullmatch(rf"({OWN})(\..*)?", name) for name in imported_names(node)):
            continue
        line = lines[node.lineno - 1]
        before, statement = line[:node.col_offset], line[node.col_offset:]
        binds_the_first_name = isinstance(node, ast.Import) and (len(node.names) > 1 or not node.names[0].asname)
        if binds_the_first_name or not IMPORT.match(statement):
            raise SetupError(f"{file}, line {node.lineno}: the package cannot be built with {line.decode().strip()!r}; "
                             "write `from ROOM import NAME` on a line of its own")
        lines[node.lineno - 1] = before + IMPORT.sub(rb"\1ris_fusion.", statement, count=1)
    return b"".join(lines)


class BuildPackage(build_py):
    def run(self):
        # Otherwise a module that was removed since the last build would be installed.
        shutil.rmtree(Path(self.build_lib, "ris_fusion"), ignore_errors=True)
        super().run()

    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        if package == "ris_fusion":
            found += [(package, name, f"{name}.py") for name in MODULES]
        return [entry for entry in found if "sys.path.insert" not in Path(entry[-1]).read_text("utf-8")]  # no scripts

    def build_module(self, module, module_file, package):
        outfile, copied = super().build_module(module, module_file, package)
        Path(outfile).write_bytes(with_prefix(module_file))
        return outfile, copied


class RefuseEditable(editable_wheel):
    def run(self):
        raise SetupError("ris_fusion cannot be installed with -e, because its imports are rewritten when it is built; "
                         "use `pip install .`, or work in the checkout itself")


rooms = find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")], exclude=["data.prepare*"])
setup(
    packages=["ris_fusion", *(f"ris_fusion.{room}" for room in rooms)],
    package_dir={f"ris_fusion.{room}": room for room in ROOMS},
    package_data={"ris_fusion.evaluation": ["*.jinja"]},
    cmdclass={"build_py": BuildPackage, "editable_wheel": RefuseEditable},
)
