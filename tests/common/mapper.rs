//! A process that writes to files through shared mappings: a program without `unsafe` cannot map a file.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Keeps its mappings until it is dropped, and so is the process.
pub(crate) struct Mapper {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

const PROGRAM: &str = "
import mmap, sys
files = {}
for line in sys.stdin:
    how, path, offset, text = line.rstrip('\\n').split('\\t')
    if how == 'anew' or path not in files:
        with open(path, 'r+b') as file:
            files[path] = mmap.mmap(file.fileno(), 0)
    offset = int(offset)
    files[path][offset:offset + len(text)] = text.encode()
    print('stored', flush=True)
";

impl Mapper {
    #[expect(clippy::disallowed_methods, reason = "the process maps files")]
    pub(crate) fn start() -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (commands, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, commands, answers: BufReader::new(answers) }
    }

    /// Stores a text at an offset of a file that is not empty. The first store maps the file.
    pub(crate) fn store(&mut self, path: &Path, offset: u64, text: &str) {
        self.command("mapped", path, offset, text);
    }

    /// The same through a new mapping: the file may be another one of this name, or shorter.
    pub(crate) fn map_and_store(&mut self, path: &Path, offset: u64, text: &str) {
        self.command("anew", path, offset, text);
    }

    fn command(&mut self, how: &str, path: &Path, offset: u64, text: &str) {
        writeln!(self.commands, "{how}\t{}\t{offset}\t{text}", path.display()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "stored\n");
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
