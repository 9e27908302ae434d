"""What pyproject.toml cannot say: the example files of pipeline/ and deploy/ go into the wheel as must_pipeline/files/.

In a checkout they stay where people look for them, and must_pipeline.files reads them there.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

EXAMPLES = {"pipeline": "", "pipeline/clusters": "clusters", "deploy": "deploy"}  # folder -> folder in files/


class BuildWithExamples(build_py):
    def run(self) -> None:
        super().run()
        for target, source in self.examples().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target, preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self.examples()]

    def examples(self) -> dict[str, str]:
        """File of the wheel -> its source. None for an editable install, which leaves the checkout as it is."""
        if self.editable_mode:
            return {}
        files = Path(self.build_lib, "must_pipeline", "files")
        return {
            str(files / inside / source.name): str(source)
            for folder, inside in EXAMPLES.items()
            for source in sorted(Path(folder).glob("*.yaml"))
        }


setup(cmdclass={"build_py": BuildWithExamples})
