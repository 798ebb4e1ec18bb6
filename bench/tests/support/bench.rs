//! The generator as a process of its own.

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A generator that runs.
pub struct Bench {
    process: Child,
    folder: TempDir,
}

/// A generator that has ended.
pub struct Run {
    pub exit_code: i32,
    /// Standard output and standard error.
    pub output: String,
    /// `report.json`, or null if there is none.
    pub report: Value,
    folder: TempDir,
}

impl Bench {
    pub fn start(scenario: &str, target: SocketAddr, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let process = Command::new(env!("CARGO_BIN_EXE_fanwire-bench"))
            .args([scenario, "--target", &target.to_string()])
            .args(options)
            .arg("--out")
            .arg(folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the generator starts");
        Self { process, folder }
    }

    pub fn run(scenario: &str, target: SocketAddr, options: &[&str]) -> Run {
        Self::start(scenario, target, options).finish()
    }

    /// Ctrl-C.
    pub fn interrupt(&self) {
        let pid = self.process.id().to_string();
        let killed = Command::new("kill").args(["-INT", &pid]).status().expect("kill");
        assert!(killed.success());
    }

    pub fn finish(mut self) -> Run {
        let mut output = String::new();
        let mut stdout = self.process.stdout.take().expect("piped");
        stdout.read_to_string(&mut output).expect("text");
        let mut stderr = self.process.stderr.take().expect("piped");
        stderr.read_to_string(&mut output).expect("text");
        let exit_code = self.process.wait().expect("an end").code().expect("no signal");
        let report = fs::read(self.folder.path().join("report.json")).unwrap_or_default();
        let report = serde_json::from_slice(&report).unwrap_or_default();
        Run { exit_code, output, report, folder: self.folder }
    }
}

impl Run {
    /// Where its results are.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.path().join(file)).expect("the file was written")
    }
}
