"""The whole way once, in minutes on a CPU: train on the embedded images, then draw pictures with the result.

    python tools/demo.py [--result-dir results]

Runs train.py --config=demo, then run_generator.py generate-images and style-mixing-example on the
network-final.pkl of that run, and says which files to look at. `make demo` calls it.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # Runs without an installation too.

from dnnlib.submission import run_number

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run_directories(result_dir: pathlib.Path) -> set[pathlib.Path]:
    """Numbered run directories (00000-…) of `result_dir`, which need not exist yet."""
    if not result_dir.is_dir():
        return set()
    return {path for path in result_dir.iterdir() if path.is_dir() and run_number(path.name) is not None}


def run_script(result_dir: pathlib.Path, *command: str) -> pathlib.Path:
    """Runs one command line of the project; returns the run directory it made.

    It is the one that was not there before, whatever its number or age, so older runs do not matter.

    Raises: SystemExit with the command's own status where it fails, with 1 where it made no run directory.
    """
    before = run_directories(result_dir)
    print(f'\n$ python {shlex.join(command)}', flush=True)
    try:
        status = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if status != 0:
        print(f'demo: {command[0]} ended with status {status}; its messages are above', file=sys.stderr)
        raise SystemExit(status if status > 0 else 1)
    new = run_directories(result_dir) - before
    if not new:
        print(f'demo: {command[0]} made no run directory in {result_dir}', file=sys.stderr)
        raise SystemExit(1)
    return max(new, key=lambda path: run_number(path.name))


def shown(path: pathlib.Path) -> str:
    """The path as one would type it from the project's folder."""
    return shlex.quote(str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--result-dir', default='results', help='where run directories go (default: results)')
    result_dir = pathlib.Path(parser.parse_args().result_dir).resolve()
    results = f'--result-dir={result_dir}'

    training = run_script(result_dir, 'train.py', '--config=demo', results)
    network = training / 'network-final.pkl'
    if not network.is_file():
        print(f'demo: training made no {shown(network)}; see {shown(training / "log.txt")}', file=sys.stderr)
        raise SystemExit(1)
    images = run_script(result_dir, 'run_generator.py', 'generate-images', f'--network={network}',
                        '--seeds=0-15', '--truncation-psi=0.7', results)
    mixing = run_script(result_dir, 'run_generator.py', 'style-mixing-example', f'--network={network}',
                        '--row-seeds=0-3', '--col-seeds=4-9', '--col-styles=0-3', '--truncation-psi=0.7',
                        results)
    python = pathlib.Path(sys.executable)

    print(f"""
The demo is done. Look at
  {shown(training / 'reals.png')}   training images
  {shown(training)}/fakes*.png   generated images, from the untrained network to the last tick
  {shown(images)}/seed*.png   one image per seed
  {shown(mixing / 'grid.png')}   style mixing: rows take the coarse styles of the columns
  {shown(training / 'log.txt')}   what was printed during training
The curves in a browser:
  {shown(python.with_name('tensorboard'))} --logdir {shown(result_dir)}
How good they are, snapshot by snapshot:
  {shown(python)} run_metrics.py --snapshots={shown(training)} --metrics=fd_efflite0_1k
More images from the trained network:
  {shown(python)} run_generator.py generate-images --network={shown(network)} --seeds=100-131""")


if __name__ == '__main__':
    main()
