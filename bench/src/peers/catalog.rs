//! The peers: what each is, its sources, and how it is installed into the work folder.
//!
//! The sources are part of this binary, so the command works wherever it is run. A peer is
//! installed when its sources are in its folder as they are here and a file `version` beside them
//! tells what was installed; otherwise the recipe starts from the beginning. Everything comes from
//! package registries by their own clients, below the work folder: no root, and nothing of the host
//! is changed. Debian packages are downloaded and unpacked, not installed.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use thiserror::Error;

use crate::child::{Owned, Waited, bound, last_line};

/// A server that takes part.
#[derive(Debug)]
pub struct Peer {
    /// Its name on the command line and in the results.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Whether at `/ws` it understands JSON that names a room: there a connection may join several
    /// rooms and publish into them.
    pub speaks_json: bool,
    sources: &'static [Source],
    install: fn(&Site<'_>) -> Result<Installed, InstallError>,
}

/// Name in the folder of the peer, and text.
type Source = (&'static str, &'static str);

macro_rules! sources {
    ($($folder:literal: $($file:literal),+);+) => {
        &[$($(($file, include_str!(concat!("../../peers/", $folder, "/", $file)))),+),+]
    };
}

/// All peers, in the order of the table.
pub const PEERS: [Peer; 6] = [
    Peer {
        name: FANWIRE,
        about: "this project's server, one shard a CPU",
        speaks_json: true,
        sources: &[],
        install: install_fanwire,
    },
    Peer {
        name: "bun",
        about: "Bun's built-in publish, uWebSockets inside (npm bun)",
        speaks_json: true,
        sources: sources!("bun": "package.json", "package-lock.json", "server.js"),
        install: install_bun,
    },
    Peer {
        name: "ws",
        about: "a loop over the members with npm ws, on the Node.js of the host",
        speaks_json: false,
        sources: sources!("ws": "package.json", "package-lock.json", "server.js"),
        install: install_ws,
    },
    Peer {
        name: "gorilla",
        about: "a hub with prepared messages on gorilla/websocket (Debian's Go packages)",
        speaks_json: false,
        sources: sources!("gorilla": "debian-packages", "main.go"),
        install: install_gorilla,
    },
    Peer {
        name: "tungstenite",
        about: "a broadcast channel per room on tokio-tungstenite (crates.io)",
        speaks_json: false,
        sources: sources!("tungstenite": "Cargo.toml", "Cargo.lock", "src/main.rs"),
        install: install_tungstenite,
    },
    Peer {
        name: "nchan",
        about: "nginx with the nchan module (Debian's packages)",
        speaks_json: false,
        sources: sources!("nchan": "debian-packages", "nginx.conf.in", "run.sh"),
        install: install_nchan,
    },
];

/// The peer that the others are compared with.
pub const FANWIRE: &str = "fanwire";

/// A file in the folder of an installed peer: the words for [`Installed::version`].
const VERSION: &str = "version";

/// A peer that can be started.
#[derive(Debug)]
pub struct Installed {
    /// What was installed, for the results.
    pub version: String,
    program: PathBuf,
    /// `{host}` and `{port}` stand for the address.
    arguments: Vec<String>,
}

/// Why a peer does not take part.
#[derive(Debug, Error)]
pub enum InstallError {
    /// The host lacks a program.
    #[error("there is no {0} on this host")]
    Missing(String),
    /// A step failed.
    #[error("{step} failed: {last_line} (all of it: {log})")]
    Failed {
        /// The command.
        step: String,
        /// The last line it printed.
        last_line: String,
        /// Where everything it printed is.
        log: PathBuf,
    },
    /// A step went well but did not leave what it should.
    #[error("{0} is not there")]
    NotThere(PathBuf),
    /// It could only publish into the room of its path.
    #[error("its server here has one room for a connection, and --rooms asks for many")]
    NoJson,
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// What all installations need to know.
#[derive(Debug)]
pub struct Workshop<'w> {
    /// The work folder, absolute.
    pub folder: &'w Path,
    /// The binary of Fanwire, if it is not to be built.
    pub fanwire: Option<&'w Path>,
    /// The CPUs that servers run on.
    pub server_cpus: &'w [usize],
    /// Set by Ctrl-C.
    pub interrupted: &'w AtomicBool,
}

/// Where one peer is installed.
struct Site<'w> {
    workshop: &'w Workshop<'w>,
    peer: &'w Peer,
    folder: PathBuf,
}

impl Peer {
    /// Installs it, unless it is installed.
    ///
    /// # Errors
    /// [`InstallError`]: what is missing or failed.
    pub fn install(&self, workshop: &Workshop<'_>) -> Result<Installed, InstallError> {
        let folder = workshop.folder.join(self.name);
        fs::create_dir_all(&folder).map_err(file(&folder))?;
        let site = Site { workshop, peer: self, folder };
        let installed = (self.install)(&site)?;
        if !installed.program.exists() && installed.program.is_absolute() {
            return Err(InstallError::NotThere(installed.program));
        }
        Ok(installed)
    }
}

impl Installed {
    /// The command that runs it on `cpus` (a list as `taskset` takes it), listening at `address`.
    pub fn command(&self, address: SocketAddr, cpus: &str) -> Command {
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let fill = |text: &String| text.replace("{host}", &host).replace("{port}", &port);
        // It becomes the program: what it does to itself holds, and the process is the server's.
        let mut command = bound("taskset");
        command.args(["--cpu-list", cpus]).arg(&self.program);
        command.args(self.arguments.iter().map(fill));
        command
    }
}

impl Site<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs `recipe`, which returns the version, unless its outcome is here already.
    fn once(
        &self,
        recipe: impl FnOnce() -> Result<String, InstallError>,
    ) -> Result<String, InstallError> {
        let stamp = self.path(VERSION);
        let same = |&(name, text): &Source| {
            fs::read_to_string(self.path(name)).is_ok_and(|found| found == text)
        };
        if self.peer.sources.iter().all(same)
            && let Ok(version) = fs::read_to_string(&stamp)
        {
            return Ok(version);
        }
        // Not there, most likely.
        let _ = fs::remove_file(&stamp);
        for (name, text) in self.peer.sources {
            let path = self.path(name);
            let folder = path.parent().unwrap_or(&self.folder);
            fs::create_dir_all(folder).map_err(file(folder))?;
            fs::write(&path, text).map_err(file(&path))?;
        }
        let version = recipe()?;
        fs::write(&stamp, &version).map_err(file(&stamp))?;
        Ok(version)
    }

    /// Runs one step of the installation and says so.
    fn step(&self, step: &str, command: &mut Command) -> Result<(), InstallError> {
        eprintln!("install  {}: {step}", self.peer.name);
        self.ask(step, command).map(drop)
    }

    /// Runs a command and returns the last line it printed.
    fn ask(&self, step: &str, command: &mut Command) -> Result<String, InstallError> {
        let log = self.path("install.log");
        command.current_dir(&self.folder);
        let mut child = Owned::start(command, &log).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => {
                InstallError::Missing(command.get_program().to_string_lossy().into_owned())
            }
            _ => InstallError::File { path: log.clone(), cause },
        })?;
        let waited = child.wait(self.workshop.interrupted).map_err(file(&log))?;
        let text = fs::read_to_string(&log).unwrap_or_default();
        match waited {
            Waited::Done => Ok(last_line(&text)),
            Waited::Interrupted => Err(InstallError::Interrupted),
            Waited::Failed | Waited::TimedOut => Err(InstallError::Failed {
                step: step.to_owned(),
                last_line: last_line(&text),
                log,
            }),
        }
    }

    /// What npm's lock file names, without running scripts of packages.
    fn npm(&self) -> Result<(), InstallError> {
        let options = ["--ignore-scripts", "--no-audit", "--no-fund"];
        self.step("npm ci", Command::new("npm").arg("ci").args(options))
    }

    /// The release build of `manifest` in `target`.
    fn cargo(&self, manifest: &Path, target: &Path, options: &[&str]) -> Result<(), InstallError> {
        // The cargo that runs us, if one does.
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["build", "--release", "--locked"]).args(options);
        command.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(target);
        self.step("cargo build --release", &mut command)
    }

    /// Unpacks the Debian packages of `debian-packages`, and those of their dependencies that the
    /// host does not have, into `debian/`; returns name and version of each it was asked for.
    fn debian(&self) -> Result<String, InstallError> {
        let packages = fs::read_to_string(self.path("debian-packages"));
        let packages = packages.map_err(file(&self.path("debian-packages")))?;
        let (apt, archives) = (self.workshop.folder.join("apt"), self.path("archives"));
        // What an earlier attempt left could be of other versions.
        for folder in [&archives, &self.path("debian")] {
            if folder.exists() {
                fs::remove_dir_all(folder).map_err(file(folder))?;
            }
        }
        for folder in [apt.join("lists/partial"), archives.join("partial")] {
            fs::create_dir_all(&folder).map_err(file(&folder))?;
        }
        let apt_get = || {
            let mut command = Command::new("apt-get");
            command.arg("--quiet").args(["-o", "Debug::NoLocking=1", "-o"]);
            // Lists and packages of our own, so that nobody has to be root; apt's own user could
            // not write them.
            command.arg(format!("Dir::State::Lists={}", apt.join("lists").display()));
            command.arg("-o").arg(format!("Dir::Cache={}", apt.display()));
            command.arg("-o").arg(format!("Dir::Cache::Archives={}", archives.display()));
            command.args(["-o", "APT::Sandbox::User=root"]);
            command
        };
        self.step("apt-get update, with lists of its own", apt_get().arg("update"))?;
        // As if to install them: so it is with dependencies. Those asked for are downloaded even
        // if the host has them.
        let options = ["--yes", "--no-install-recommends", "--download-only", "--reinstall"];
        let names: Vec<_> = packages.lines().collect();
        let step = format!("download Debian's {}", names.join(" "));
        self.step(&step, apt_get().arg("install").args(options).args(&names))?;
        let mut versions = Vec::new();
        for entry in fs::read_dir(&archives).map_err(file(&archives))? {
            let package = entry.map_err(file(&archives))?.path();
            if package.extension() != Some("deb".as_ref()) {
                continue;
            }
            let dpkg_deb = |action: &str| {
                let mut command = Command::new("dpkg-deb");
                command.arg(action).arg(&package);
                command
            };
            self.ask("dpkg-deb --extract", dpkg_deb("--extract").arg("debian"))?;
            let shown = self.ask("dpkg-deb --show", &mut dpkg_deb("--show"))?;
            if let Some((name, version)) = shown.split_once('\t')
                && names.contains(&name)
            {
                versions.push(format!("{name} {version}"));
            }
        }
        fs::remove_dir_all(&archives).map_err(file(&archives))?;
        versions.sort();
        Ok(versions.join(", "))
    }
}

fn install_fanwire(site: &Site<'_>) -> Result<Installed, InstallError> {
    let program = match site.workshop.fanwire {
        Some(binary) => binary.to_owned(),
        None => {
            // Beside us: target/release/fanwire, also where we are a debug build.
            let own = std::env::current_exe().map_err(file(Path::new("/proc/self/exe")))?;
            let target = own.ancestors().nth(2).unwrap_or(Path::new("target"));
            let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("Cargo.toml");
            // Without the sources it has to be there already.
            if manifest.exists() {
                site.cargo(&manifest, target, &["--package", "fanwire"])?;
            }
            target.join("release/fanwire")
        }
    };
    // A path, or it would be looked for in PATH.
    let program = fs::canonicalize(&program).map_err(|_| InstallError::NotThere(program))?;
    let version = site.ask("fanwire --version", Command::new(&program).arg("--version"))?;
    let cpus = site.workshop.server_cpus;
    let list = cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let shards = cpus.len().to_string();
    let arguments = ["serve", "--shards", &shards, "--cpus", &list, "--admin", "off"];
    // A bound that others do not have, and that costs nothing until it is used.
    let arguments = arguments.into_iter().chain(["--rooms-per-connection-max", "65536"]);
    let arguments = arguments.chain(["--listen", "{host}:{port}"]).map(str::to_owned);
    Ok(Installed { version, program, arguments: arguments.collect() })
}

fn install_bun(site: &Site<'_>) -> Result<Installed, InstallError> {
    // npm names architectures in its own way. The package for the host holds the binary itself;
    // what its installation script would do is find it.
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "x64",
        other => other,
    };
    let program = site.path(&format!("node_modules/@oven/bun-linux-{architecture}/bin/bun"));
    let version = site.once(|| {
        site.npm()?;
        let version = site.ask("bun --version", Command::new(&program).arg("--version"))?;
        Ok(format!("bun {version}"))
    })?;
    Ok(Installed { version, program, arguments: script(site, "server.js", &[]) })
}

fn install_ws(site: &Site<'_>) -> Result<Installed, InstallError> {
    let ws = site.once(|| {
        site.npm()?;
        let script = "require('ws/package.json').version";
        let version = site.ask("node --print", Command::new("node").args(["--print", script]))?;
        Ok(format!("ws {version}"))
    })?;
    // Node.js is the host's and may be another one the next time.
    let node = site.ask("node --version", Command::new("node").arg("--version"))?;
    let version = format!("{ws}, Node.js {node}");
    Ok(Installed { version, program: "node".into(), arguments: script(site, "server.js", &[]) })
}

fn install_gorilla(site: &Site<'_>) -> Result<Installed, InstallError> {
    let program = site.path("server");
    let version = site.once(|| {
        let packages = site.debian()?;
        let go = "usr/lib/go/bin/go";
        // Of the packages it depends on only those are unpacked that the host lacks.
        let places = [site.path("debian"), PathBuf::from("/")];
        let found = places.iter().find_map(|root| fs::canonicalize(root.join(go)).ok());
        let found = found.ok_or_else(|| InstallError::NotThere(site.path("debian").join(go)))?;
        let root = found.ancestors().nth(2).unwrap_or(Path::new("/"));
        let mut command = Command::new(&found);
        command.args(["build", "-o"]).arg(&program).arg("main.go");
        command.env("GOROOT", root).env("GOPATH", site.path("debian/usr/share/gocode"));
        // Debian's libraries come without modules; nothing of this is C, and nothing is fetched.
        command.env("GO111MODULE", "off").env("CGO_ENABLED", "0").env("GOFLAGS", "");
        command.env("GOCACHE", site.path("cache"));
        site.step("go build", &mut command)?;
        Ok(packages)
    })?;
    let arguments = ["{host}", "{port}"].map(str::to_owned).to_vec();
    Ok(Installed { version, program, arguments })
}

fn install_tungstenite(site: &Site<'_>) -> Result<Installed, InstallError> {
    let target = site.path("target");
    let version = site.once(|| {
        site.cargo(&site.path("Cargo.toml"), &target, &[])?;
        let manifest = fs::read_to_string(site.path("Cargo.lock"));
        let manifest = manifest.map_err(file(&site.path("Cargo.lock")))?;
        let of = |name: &str| locked_version(&manifest, name).unwrap_or("?").to_owned();
        Ok(format!("tokio-tungstenite {}, tokio {}", of("tokio-tungstenite"), of("tokio")))
    })?;
    let program = target.join("release/fanwire-peer-tungstenite");
    let arguments = ["{host}", "{port}"].map(str::to_owned).to_vec();
    Ok(Installed { version, program, arguments })
}

fn install_nchan(site: &Site<'_>) -> Result<Installed, InstallError> {
    let version = site.once(|| site.debian())?;
    let root = site.path("debian").display().to_string();
    let arguments = script(site, "run.sh", &[&root]);
    Ok(Installed { version, program: "bash".into(), arguments })
}

/// Arguments that run `name` in the folder of the peer: `options`, then host and port.
fn script(site: &Site<'_>, name: &str, options: &[&str]) -> Vec<String> {
    let path = site.path(name).display().to_string();
    let words = [path.as_str()].into_iter().chain(options.iter().copied());
    words.chain(["{host}", "{port}"]).map(str::to_owned).collect()
}

/// The version of package `name` in a Cargo.lock.
fn locked_version<'l>(lock: &'l str, name: &str) -> Option<&'l str> {
    let entry = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?.1;
    entry.split_once('"').map(|(version, _)| version)
}

fn file(path: &Path) -> impl Fn(io::Error) -> InstallError {
    move |cause| InstallError::File { path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_versions_in_a_lock_file() {
        let peer = PEERS.iter().find(|peer| peer.name == "tungstenite").expect("a peer");
        let (_, lock) = peer.sources[1];
        let version = locked_version(lock, "tokio-tungstenite").expect("it depends on it");
        assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
        assert_eq!(locked_version(lock, "tokio-tungsten"), None);
    }

    #[test]
    fn has_every_source_and_the_manual_names_every_peer() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let manual = fs::read_to_string(root.join("README.md")).expect("a manual");
        for peer in &PEERS {
            let named = format!("| `{}` |", peer.name);
            assert!(manual.contains(&named), "bench/README.md has no row for {}", peer.name);
            let folder = root.join("peers").join(peer.name);
            let mut embedded: Vec<_> =
                peer.sources.iter().map(|source| folder.join(source.0)).collect();
            let mut found = files(&folder);
            embedded.sort();
            found.sort();
            assert_eq!(embedded, found, "sources of {}", peer.name);
        }
    }

    /// All files below `folder`; none if there is no such folder.
    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            // What someone has built or installed there by hand is no source.
            if path.ends_with("target") || path.ends_with("node_modules") {
                continue;
            }
            if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
        }
        files
    }
}
