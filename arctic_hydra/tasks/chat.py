"""`task=chat`: talks to a model in the terminal, or answers one prompt or those of a file; writes nothing into a run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from arctic_hydra import config, determinism, display, distributed, log
from arctic_hydra.errors import EXIT_DONE, ConfigError, DataError
from arctic_hydra.generation.answers import Answer, Decoding, Generator
from arctic_hydra.generation.prompt_file import Question, read_prompts
from arctic_hydra.generation.prompts import PromptEncoder
from arctic_hydra.human_numbers import format_count
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.tasks import chat_model

if TYPE_CHECKING:
    from arctic_hydra.data.formats.messages import Message

HELP = """\
/reset          start a new conversation
/system TEXT    set the system message; without TEXT, remove it
/help           show these lines
/exit           leave, as Ctrl-D does
Ctrl-C          stop the answer; twice, leave"""


def execute(run: config.Run, directory: RunDirectory) -> int:
    """Answer `prompt`, the prompts of the file `prompts`, or those that the user types; return the exit code."""
    questions = read_prompts(Path(run.prompts).expanduser()) if run.prompts is not None else []
    out = Path(run.out).expanduser() if run.out is not None else None
    if out is not None:
        _check_out(run, out)
    talk = Talk(run, directory)
    with talk.without_rounding():
        if questions:
            encoded = talk.encode_all(questions)  # raises before `out`, which may hold earlier answers, is overwritten
            with out.open("w", encoding="utf-8") if out is not None else nullcontext(sys.stdout) as file:
                talk.answer_all(questions, encoded, file)
        elif run.prompt is not None:
            talk.messages.append({"role": "user", "content": run.prompt})
            talk.answer()
        else:
            talk.interact()
    return EXIT_DONE


def _check_out(run: config.Run, out: Path) -> None:
    """Raise ConfigError unless `out` can be written and is not the file of prompts."""
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ConfigError(f"out: got {run.out}, expected the path of a file in a folder that exists")
    if run.prompts is not None and out.exists() and out.samefile(Path(run.prompts).expanduser()):
        raise ConfigError(f"out: got {run.out}, the file of prompts itself; expected another file, or it would be lost")
    if not os.access(out if out.exists() else out.absolute().parent, os.W_OK):
        raise ConfigError(f"out: got {run.out}, which cannot be written; expected a file that you may write")


class Talk:
    """A conversation with a model."""

    def __init__(self, run: config.Run, directory: RunDirectory) -> None:
        """Load the model, with messages on standard error only."""
        log.quiet_libraries()
        log.quiet_warnings()
        log.quiet_progress_bars()
        distributed.choose_accelerator()
        self._run = run
        with display.waiting("load"):
            self._loaded = loaded = chat_model.load(run, directory)
        self._prompts = PromptEncoder(loaded.tokenizer)
        decoding = Decoding(max_new_tokens=run.max_new_tokens, temperature=run.temperature, top_p=run.top_p)
        self._generator = Generator(loaded.model, loaded.tokenizer, loaded.stop_tokens, decoding)
        self.messages: list[Message] = []
        self._system = run.system
        if loaded.continues_text and run.system is not None:
            raise ConfigError(
                "system: has no effect on a model that was trained on texts without a chat template, or has none; remove it"
            )
        determinism.seed_everything(run.sampling_seed)

    @contextmanager
    def without_rounding(self) -> Iterator[None]:
        """Multiply in the dtype of the weights within this context, as an export does."""
        with ExitStack() as exact:
            for converter in self._loaded.converters:
                exact.enter_context(converter.without_rounding(self._loaded.model))
            yield

    def encode_all(self, questions: Sequence[Question]) -> list[list[int]]:
        """Return the tokens of the prompts of a file. Raises DataError for one that cannot be answered."""
        return [self._encode_question(question) for question in questions]

    def answer_all(self, questions: Sequence[Question], prompts: Sequence[list[int]], out: IO[str]) -> None:
        """Answer the prompts of a file in batches; write a line for each, in order, as soon as its batch is answered."""
        size, done = self._run.generation_batch_size, 0
        for start in range(0, len(questions), size):
            answers = self._generator.answer(prompts[start : start + size])
            for question, answer in zip(questions[start : start + size], answers, strict=True):
                line = {**question.row, "answer": answer.text, "finish_reason": answer.finish_reason}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
            done += len(answers)
            if out is not sys.stdout:
                _note(f"answered {done} of {len(questions)}")

    def answer(self) -> Answer:
        """Print the answer to the conversation as it is generated, and return it. KeyboardInterrupt stops it."""
        from arctic_hydra.tasks.chat_stream import AnswerStream

        prompt = self._encode(self.messages)
        stream = AnswerStream(self._loaded.tokenizer, self._generator.stops, prompt)
        try:
            (answer,) = self._generator.answer([prompt], stream)
        except KeyboardInterrupt:
            stream.end()
            _note("stopped")
            self.messages.append({"role": "assistant", "content": stream.text})
            raise
        self.messages.append({"role": "assistant", "content": answer.text})
        if answer.finish_reason == "length":
            _note(
                "the answer was cut: raise max_new_tokens"
                if self._has_room(prompt)
                else "the context of the model is full"
            )
        return answer

    def interact(self) -> None:
        """Answer what the user types, until the end of the input, `/exit`, or Ctrl-C twice."""
        with suppress(ImportError):  # some builds of Python lack it
            import readline  # noqa: F401  # lines that `input` reads can then be edited
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # a bad byte would otherwise end the reading of all lines
        self._greet()
        interrupted = False
        while True:
            try:
                line = _read_line()
                interrupted = False
                if not _is_utf8(line):
                    _note("the line is not UTF-8; it was left out")
                elif line.startswith("/"):
                    if self._run_command(*line.split(None, 1)):
                        return
                elif line.strip():
                    self._turn(line)
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:
                if self.messages and self.messages[-1]["role"] == "user":  # its answer had not begun
                    self.messages.pop()
                print(file=sys.stderr)
                if interrupted:
                    return
                interrupted = True
                _note("Ctrl-C again leaves")

    def _turn(self, line: str) -> None:
        """Answer one line; report and drop one that cannot be answered."""
        if self._loaded.continues_text:
            self.messages.clear()  # texts are independent of each other
        self.messages.append({"role": "user", "content": line})
        try:
            self.answer()
        except DataError as error:
            self.messages.pop()
            _note(f"{error}; /reset starts a new conversation")

    def _run_command(self, command: str, argument: str = "") -> bool:
        """Run a command such as /reset; return whether to leave."""
        if command == "/exit":
            return True
        if command == "/reset":
            self.messages.clear()
            _note("a new conversation")
        elif command == "/system" and self._loaded.continues_text:
            _note("a model that continues texts has no system message")
        elif command == "/system":
            self._system = argument.strip() or None
            _note("the system message is set" if self._system else "there is no system message")
        else:
            _note(HELP if command == "/help" else f"{command}: there is no such command; /help lists them")
        return False

    def _greet(self) -> None:
        model = self._loaded.model
        size = format_count(sum(parameter.numel() for parameter in model.parameters()))
        _note(
            f"{self._loaded.where} ({size} parameters, {str(model.dtype).removeprefix('torch.')}, {model.device.type})"
        )
        if self._loaded.continues_text:
            _note("no chat template applies to this model: it continues what you type")
        _note("/help lists the commands; Ctrl-D leaves")

    def _encode(self, messages: list[Message], tools: list[Any] | None = None) -> list[int]:
        """Return the tokens of a conversation up to the answer; raises DataError if they leave no room for one."""
        if self._loaded.continues_text:
            ids = self._prompts.text(str(messages[-1]["content"]))
        else:
            system = [{"role": "system", "content": self._system}] if self._system is not None else []
            ids = self._prompts.chat([*system, *messages], tools)
        self._generator.check_length(ids)
        return ids

    def _encode_question(self, question: Question) -> list[int]:
        if self._system is not None and question.messages[0]["role"] == "system":
            raise DataError(f"{question.place}: already has a system message; remove it, or leave out system=")
        try:
            if self._loaded.continues_text:
                return self._encode([{"role": "user", "content": question.text}])
            return self._encode(question.messages, question.tools)
        except DataError as error:
            text = str(error)
            raise DataError(text if text.startswith(question.place) else f"{question.place}: {text}") from error

    def _has_room(self, prompt: list[int]) -> bool:
        positions = self._generator.positions
        return positions is None or len(prompt) + self._run.max_new_tokens < positions


def _read_line() -> str:
    """Return what the user types; standard output gets the answers only, unless it is the same terminal."""
    if not sys.stdin.isatty():
        return input()
    if sys.stdout.isatty():
        print()
        return input("> ")
    print("\n> ", end="", file=sys.stderr, flush=True)
    return input()


def _is_utf8(line: str) -> bool:
    """Whether all bytes of a line could be decoded; the tokenizer refuses one with others."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def _note(text: str) -> None:
    """Print a message that is not part of an answer on standard error, dimmed in a terminal."""
    from arctic_hydra.tasks.chat_stream import dimmed

    print(dimmed(text, sys.stderr), file=sys.stderr, flush=True)
