"""What every command line shares: its conventions for flags, values, subcommands, --help and errors.

A script looks like this:

    def make_parser():
        parser = flags.Parser('Trains a network.', examples=['%(prog)s --dataset=ffhq --num-gpus=4'])
        parser.add_flag('dataset', help='Data set to train on', required=True)
        parser.add_flag('num-gpus', flags.positive_int, 'Number of GPUs', default=1)
        parser.add_flag('mirror-augment', bool, 'Flip images at random', default=False)
        return parser

    def main():
        flags.run(run, make_parser)  # Calls run(args) with args.dataset, args.num_gpus, args.mirror_augment.

Built on absl (`absl.flags.argparse_flags`), so that absl's own flags (`--flagfile`, `--verbosity`, `--pdb`)
work too.
"""

import argparse
import contextlib
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from absl import app, logging
from absl import flags as absl_flags
from absl.flags import argparse_flags

from .startup import load_tensorflow
from .util import UserError, did_you_mean

_TRUE = {'true', 't', 'yes', 'y', '1', 'on'}
_FALSE = {'false', 'f', 'no', 'n', '0', 'off'}
_MAX_NUMBERS = 10_000_000  # A longer list is a typing error; building it would take all memory.


# Values: each function takes the text of a flag and returns its value, or raises UserError.

def boolean(text: str) -> bool:
    """'true', 'yes', 't', 'y', '1', 'on' or their opposites, in any case."""
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise UserError(f'expected true or false, received {text!r}')
    return word in _TRUE


def integer(minimum: int | None = None, maximum: int | None = None) -> Callable[[str], int]:
    """A converter for integers within bounds (inclusive)."""
    def convert(text: str) -> int:
        value = int(text) if re.fullmatch(r'\s*[+-]?[0-9]+\s*', text) else None
        return _bounded(value, minimum, maximum, 'an integer', text)
    convert.metavar = 'INT'
    return convert


def number(minimum: float | None = None, maximum: float | None = None) -> Callable[[str], float]:
    """A converter for finite numbers within bounds (inclusive)."""
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = None
        if value is not None and not math.isfinite(value):
            value = None
        return _bounded(value, minimum, maximum, 'a number', text)
    convert.metavar = 'NUMBER'
    return convert


def _bounded(value: Any, minimum: Any, maximum: Any, kind: str, text: str) -> Any:
    too_small = value is not None and minimum is not None and value < minimum
    too_large = value is not None and maximum is not None and value > maximum
    if value is None or too_small or too_large:
        if minimum is not None and maximum is not None:
            kind += f' from {minimum} to {maximum}'
        elif minimum is not None:
            kind += f' from {minimum} up'
        elif maximum is not None:
            kind += f' up to {maximum}'
        raise UserError(f'expected {kind}, received {text!r}')
    return value


positive_int = integer(minimum=1)
nonneg_int = integer(minimum=0)
nonneg_float = number(minimum=0)


def path(text: str) -> str:
    """Any text but an empty one, which mostly is a shell variable that was not set."""
    if not text.strip():
        raise UserError('expected a path, received an empty text')
    return text


path.metavar = 'PATH'


def choice(names: Iterable[str]) -> Callable[[str], str]:
    """A converter for one of several names."""
    names = [str(name) for name in names]

    def convert(text: str) -> str:
        if text not in names:
            hint = did_you_mean(text, names, 1)
            raise UserError(f'expected one of {", ".join(names)}; received {text!r}{hint}')
        return text
    joined = ','.join(names)
    convert.metavar = '{' + joined + '}' if len(joined) <= 60 else 'NAME'
    return convert


def number_list(text: str | Sequence[int]) -> list[int]:
    """'1,3-5' → [1, 3, 4, 5]: numbers from 0 up and ranges that include both ends, in the order given.

    Errors: UserError for anything else, also for a range that runs backwards.
    """
    if not isinstance(text, str):
        return [int(value) for value in text]
    values = []
    for part in text.split(','):
        match = re.fullmatch(r'\s*([0-9]+)(?:\s*-\s*([0-9]+))?\s*', part)
        if match is None:
            raise UserError(f"expected numbers and ranges such as '1,3-5', received {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"expected a range from the smaller to the larger number, '{last}-{first}', "
                            f'received {part.strip()!r}')
        if len(values) + last - first >= _MAX_NUMBERS:
            raise UserError(f'expected at most {_MAX_NUMBERS} numbers, received {text!r}')
        values.extend(range(first, last + 1))
    return values


number_list.metavar = 'LIST'

_SIMPLE_TYPES = {int: integer(), float: number(), bool: boolean}


def _canonical(name: str) -> str:
    """The form in which names of flags and commands are compared."""
    return name.lstrip('-').replace('-', '_')


def _as_argparse_type(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def wrapped(text: str) -> Any:
        try:
            return convert(text)
        except UserError as error:
            # The only exception whose text argparse prints as it is.
            raise argparse.ArgumentTypeError(str(error)) from None
    return wrapped


class _HelpFormatter(argparse.HelpFormatter):
    """Adds defaults to the help of flags; wraps paragraphs, keeps indented lines (examples) as they are."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ''
        default = action.default
        if getattr(action, 'is_required_flag', False):
            text += ' (required)'
        elif default is not None and default is not argparse.SUPPRESS and action.option_strings:
            if isinstance(default, bool):
                default = str(default).lower()
            elif isinstance(default, list | tuple):
                default = ','.join(map(str, default))
            text += f' (default: {default})'.replace('%', '%%')
        return text

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(' '.join(text.split()), width, break_on_hyphens=False)

    def _format_action(self, action: argparse.Action) -> str:
        subactions = getattr(action, '_get_subactions', None)
        if subactions is None:
            return super()._format_action(action)
        # The commands alone, each with its help beside it; argparse would put a line '<command>' above them.
        return ''.join(super(_HelpFormatter, self)._format_action(subaction) for subaction in subactions())

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = []
        for paragraph in textwrap.dedent(text).strip('\n').split('\n\n'):
            if any(line.startswith(' ') for line in paragraph.split('\n')):
                parts.append(textwrap.indent(paragraph, indent))
            else:
                joined = ' '.join(paragraph.split())
                parts.append(textwrap.fill(joined, width, initial_indent=indent, subsequent_indent=indent,
                                           break_on_hyphens=False))
        return '\n\n'.join(parts)


class Parser(argparse_flags.ArgumentParser):
    """A parser of command lines with the conventions of this project.

    - Hyphens and underscores mean the same in names of flags and commands; flags are not abbreviated.
    - Booleans: `--flag`, `--flag=true`, `--flag true`, `--no-flag`, `--noflag`.
    - A mistake gives one line on stderr and exit status 2; an unknown name brings the closest known one.

    Args:
        description: What the script does; printed by --help.
        examples: Command lines for the end of --help; '%(prog)s' stands for the script's name.
        prog: Name of the script; default: that of the running one.
        **kwargs: As of argparse.ArgumentParser.
    """

    def __init__(
        self,
        description: str | None = None,
        examples: Sequence[str] | None = None,
        prog: str | None = None,
        **kwargs: Any,
    ):
        epilog = kwargs.pop('epilog', None) or ''
        if examples:
            epilog += ('\n\n' if epilog else '') + 'examples:\n' + '\n'.join(f'  {line}' for line in examples)
        self._flags = {}  # Canonical name → action, of the flags of add_flag.
        self._commands = None  # The subparsers action, from the first add_command on.
        kwargs = {'allow_abbrev': False, 'formatter_class': _HelpFormatter, **kwargs}
        super().__init__(prog=prog, description=description, **kwargs)
        self.epilog = epilog.replace('%(prog)s', self.prog)

    def add_flag(
        self,
        name: str,                               # 'num-gpus'; leading hyphens may be left out.
        type: Callable[[str], Any] = str,        # str, int, float, bool or a converter (flags.positive_int).
        help: str = '',                          # For --help; the default is added to it.
        *,
        default: Any = None,                     # Value when not given; a text is converted as if typed.
        required: bool = False,                  # Whether the flag must be given.
        choices: Iterable[str] | None = None,    # Allowed values, instead of `type`.
        metavar: str | None = None,              # What stands for the value in --help.
        dest: str | None = None,                 # Name of the attribute; default: the name with underscores.
    ) -> argparse.Action:
        """Adds a flag that takes one value; `type=bool` makes it a boolean. Returns the argparse action."""
        name = '--' + name.lstrip('-').replace('_', '-')
        convert = choice(choices) if choices is not None else _SIMPLE_TYPES.get(type, type)
        if metavar is None:
            metavar = '[BOOL]' if convert is boolean else getattr(convert, 'metavar', 'TEXT')
        action = self.add_argument(
            name,
            type=_as_argparse_type(convert),
            help=help.replace('%', '%%'),
            default=default,
            metavar=metavar,
            dest=dest or _canonical(name),
        )
        # Not argparse's own `required`: a misspelled flag is to be reported before the one then missing.
        action.is_required_flag = required
        action.is_boolean_flag = convert is boolean
        self._flags[_canonical(name)] = action
        return action

    def add_command(
        self,
        name: str,
        func: Callable[..., Any],
        help: str,
        examples: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> 'Parser':
        """Adds a subcommand and returns its parser, to add flags to.

        Args:
            name: Its name; hyphens and underscores do for each other on the command line.
            func: What `run_command` calls, with the flags of the command as keyword arguments.
            help: One sentence for --help.
            examples: Command lines for its own --help.
        """
        if self._commands is None:
            self._commands = self.add_subparsers(
                title='commands', metavar='<command>', dest='command', prog=self.prog)
        parser = self._commands.add_parser(
            name, help=help, description=kwargs.pop('description', help), examples=examples, **kwargs)
        parser.set_defaults(command=name, func=func)
        for other in (_canonical(name), _canonical(name).replace('_', '-')):
            self._commands.choices[other] = parser
        return parser

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Parses a command line (default: the running script's); exits with one line when it is wrong."""
        try:
            result, rest = self.parse_known_args(args, namespace)
        except (absl_flags.Error, OSError) as error:  # From absl's own flags, --flagfile among them.
            self.error(_one_line(error))
        parser = self
        command = getattr(result, 'command', None)
        if self._commands is not None and command is not None:
            parser = self._commands.choices[command]
        if rest:
            parser._reject(rest)
        if self._commands is not None and command is None:
            self.error(f'expected a command: {", ".join(self._command_names())}')
        for action in [*self._flags.values(), *parser._flags.values()]:
            if action.is_required_flag and getattr(result, action.dest, None) is None:
                parser.error(f'{action.option_strings[0]} is required, but was not given')
        return result

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple:
        """As argparse's; the names of flags may have hyphens or underscores."""
        args = list(sys.argv[1:] if args is None else args)
        if self._inherited_absl_flags is not None:
            args = self._inherited_absl_flags.read_flags_from_files(args, force_gnu=True)
        return super().parse_known_args(self._normalize(args), namespace)

    def _normalize(self, args: list[str]) -> list[str]:
        """Brings flags into the form in which argparse knows them; a boolean becomes `--name=value`."""
        options = (option for option in self._option_string_actions if option.startswith('--'))
        known = {_canonical(option): option for option in options}
        known.update((name, action.option_strings[0]) for name, action in self._flags.items())
        takes_words = any(not action.option_strings for action in self._actions)
        result, rest = [], list(args)
        while rest:
            arg = rest.pop(0)
            if arg == '--':
                return [*result, arg, *rest]
            if not arg.startswith('--'):
                result.append(arg)
                continue
            typed, equals, value = arg.partition('=')
            name = _canonical(typed)
            negated = filter(self._is_boolean, (name[2:], name[3:]) if name.startswith('no') else ())
            negated = next(negated, None)
            if name not in known and negated is not None:
                if equals:
                    self.error(f'{typed}: expected no value, received {value!r}')
                arg = f'{known[negated]}=false'
            elif self._is_boolean(name):
                if not equals:
                    # The next word is this flag's value if it looks like one, or can be nothing else.
                    is_value = rest and (rest[0].lower() in _TRUE | _FALSE
                                         or not takes_words and not rest[0].startswith('-'))
                    value = rest.pop(0) if is_value else 'true'
                arg = f'{known[name]}={value}'
            elif name in known:
                # argparse takes a word like -1e-3 for a flag unless it is joined to its own.
                if name in self._flags and not equals and rest and re.match(r'-\.?[0-9]', rest[0]):
                    equals, value = '=', rest.pop(0)
                arg = known[name] + equals + value
            result.append(arg)
        return result

    def _is_boolean(self, name: str) -> bool:
        return name in self._flags and self._flags[name].is_boolean_flag

    def _command_names(self) -> list[str]:
        parsers = {id(parser): name for name, parser in reversed(self._commands.choices.items())}
        return [name for name in self._commands.choices if name in parsers.values()]

    def _reject(self, rest: list[str]) -> NoReturn:
        """Reports the first argument that no flag takes."""
        unknown = next((arg for arg in rest if arg.startswith('-') and len(arg) > 1), None)
        if unknown is None:
            self.error(f'expected no argument {rest[0]!r}: values belong to flags, as in --name=value')
        names = {action.option_strings[0].lstrip('-') for action in self._flags.values()}
        typed = unknown.partition('=')[0]
        name = typed.lstrip('-').replace('_', '-')
        longer = sorted(known for known in names if known.startswith(name))
        hint = did_you_mean(longer[0] if longer else name, sorted(names), 1)
        self.error(f'unknown flag {typed}' + re.sub(r"'(.*)'", r'--\1', hint))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action is self._commands and value not in action.choices:
            names = self._command_names()
            hint = did_you_mean(value.replace('_', '-'), names, 1) or f'; expected {", ".join(names)}'
            self.error(f'unknown command {value!r}{hint}')
        super()._check_value(action, value)

    def format_help(self) -> str:
        """The text of --help, as wide as the terminal."""
        words = ['%(prog)s']
        for action in self._actions:
            if not action.option_strings:
                words.append('<command>' if action is self._commands else str(action.metavar or action.dest))
        self.usage = ' '.join([*words, '[flags]'])
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Prints one line on stderr and exits with status 2."""
        message = re.sub(r'^argument ', '', _one_line(message))
        message = re.sub(r'expected one argument$', 'expected a value, received none', message)
        self.exit(2, f'{self.prog}: error: {message} (see {self.prog} --help)\n')


# Flags that several scripts have.

def add_custom_ops_flag(parser: Parser) -> None:
    """Adds --custom-ops to a parser (that of a subcommand too); its value is for `use_custom_ops`."""
    parser.add_flag('custom-ops', choices=['auto', 'custom', 'ref'], help=(
        'compiled operations: auto = where they are faster, custom = always, ref = never '
        '(default: $STYLEGAN_CUSTOM_OPS or auto)'))


def use_custom_ops(mode: str | None) -> None:
    """Sets what --custom-ops says for this process; to be called before networks are built.

    Errors: UserError where 'custom' cannot be had, or where $STYLEGAN_CUSTOM_OPS is no mode.
    """
    if mode is None and 'STYLEGAN_CUSTOM_OPS' not in os.environ:
        return
    load_tensorflow()
    from custom_ops import build
    if mode is not None:
        build.set_mode(mode)
    if build.get_mode() == 'custom':
        build.require_library()


# Running.

def run_command(args: argparse.Namespace) -> Any:
    """Calls the function of the chosen subcommand with its flags as keyword arguments; a `main` for `run`."""
    kwargs = vars(args).copy()
    kwargs.pop('command')
    return kwargs.pop('func')(**kwargs)


def run(
    main: Callable[[argparse.Namespace], Any],
    parser_factory: Callable[[], Parser],
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Parses the command line, calls `main(args)` and ends the process.

    UserError and OSError become one line on stderr and exit status 2, Ctrl-C becomes status 130; an integer
    that main returns becomes the exit status. Other exceptions keep their traceback. With absl's
    --pdb_post_mortem every exception passes through to the debugger.

    Args:
        main: The script's work.
        parser_factory: Makes the script's parser; called once absl is ready.
        argv: Command line with the program's name first; default: sys.argv.
    """
    argv = list(sys.argv if argv is None else argv)
    prog = os.path.basename(argv[0])

    def parse(argv: list[str]) -> argparse.Namespace:
        nonlocal prog
        parser = parser_factory()
        prog = parser.prog
        return parser.parse_args(argv[1:])

    def guarded_main(args: argparse.Namespace) -> int:
        if not absl_flags.FLAGS['verbosity'].present:
            logging.set_verbosity(logging.WARNING)  # absl's default shows what libraries note for themselves.
        try:
            result = main(args)
            sys.stdout.flush()
            return result if isinstance(result, int) and not isinstance(result, bool) else 0
        except KeyboardInterrupt:
            return _fail(prog, 'interrupted', 130)
        except BrokenPipeError:
            # The reader of our output has gone (`| head`); without this the interpreter complains at exit.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except (UserError, OSError) as error:
            if absl_flags.FLAGS.pdb_post_mortem:
                raise
            return _fail(prog, f'error: {_one_line(error)}', 2)

    try:
        app.run(guarded_main, argv=argv, flags_parser=parse)
    except KeyboardInterrupt:
        sys.exit(_fail(prog, 'interrupted', 130))
    except UserError as error:
        if absl_flags.FLAGS.is_parsed() and absl_flags.FLAGS.pdb_post_mortem:
            raise
        sys.exit(_fail(prog, f'error: {_one_line(error)}', 2))


def _fail(prog: str, line: str, status: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f'{prog}: {line}\n')
    return status


def _one_line(error: BaseException | str) -> str:
    """The message of an error on one line; that of the operating system begins with the file it concerns."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        names = [os.fsdecode(name) if not isinstance(name, int) else f'file descriptor {name}'
                 for name in (error.filename, error.filename2) if name is not None]
        text = ': '.join([*([' → '.join(names)] if names else []), error.strerror])
    return ' '.join(text.split()) or type(error).__name__
