//! A package archive with suites, keys and a server, and a machine that is
//! configured for a part of it; all in a directory.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::fake_tree;

const KSCOPE: &str = env!("CARGO_BIN_EXE_kscope");

/// The archive and the machine.
pub struct World {
    dir: tempfile::TempDir,
    server: Option<Server>,
}

impl World {
    /// An empty archive, served, and a machine whose apt believes the key `old`.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in [
            "archive/pool",
            "keys",
            "machine/lists/partial",
            "machine/cache/archives/partial",
            "machine/parts",
        ] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        let server = Server::start(dir.path().join("archive"));
        let world = Self {
            server: Some(server),
            dir,
        };
        // gpg warns of any other.
        let own = fs::Permissions::from_mode(0o700);
        fs::set_permissions(world.path("keys"), own).unwrap();
        for key in ["old", "new"] {
            world.gpg(&["--quick-gen-key", key, "ed25519", "sign", "never"]);
            let ring = world.path(&format!("{key}.gpg"));
            world.gpg(&["--output", ring.to_str().unwrap(), "--export", key]);
        }
        world.configure();
        world
    }

    /// A path in the world's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self) {
        let machine = self.path("machine");
        let machine = machine.display();
        let config = format!(
            "Dir::Etc::parts \"{machine}/parts\";\n\
             Dir::Etc::main \"{machine}/none\";\n\
             Dir::Etc::sourcelist \"{machine}/none\";\n\
             Dir::Etc::sourceparts \"{machine}/sources.d\";\n\
             Dir::Etc::trusted \"{machine}/none\";\n\
             Dir::Etc::trustedparts \"{machine}/parts\";\n\
             Dir::State::lists \"{machine}/lists\";\n\
             Dir::State::status \"{machine}/status\";\n\
             Dir::Cache \"{machine}/cache\";\n\
             Dir::Log \"{machine}/log\";\n\
             APT::Sandbox::User \"root\";\n\
             // What would be done to the machine if it were run.\n\
             APT::Update::Post-Invoke {{ \"touch {machine}/hooked\"; }};\n\
             APT::Default-Release \"bookworm\";\n"
        );
        fs::write(self.path("apt.conf"), config).unwrap();
        fs::write(self.path("machine/status"), "").unwrap();
        fs::create_dir_all(self.path("machine/sources.d")).unwrap();
        let sources = format!(
            "Types: deb\nURIs: http://127.0.0.1:{}/debian\nSuites: bookworm\nComponents: main\n\
             Signed-By:\n {}\n",
            self.server.as_ref().unwrap().port,
            self.path("old.gpg").display()
        );
        fs::write(self.path("machine/sources.d/debian.sources"), sources).unwrap();
    }

    fn gpg(&self, args: &[&str]) {
        let mut gpg = Command::new("gpg");
        gpg.arg("--homedir").arg(self.path("keys"));
        gpg.args(["--batch", "--quiet", "--yes", "--passphrase", ""]);
        check(gpg.args(args));
    }

    /// Publishes a suite of these packages (`NAME VERSION`, made by
    /// [`World::package`]), signed with a key.
    pub fn publish(&self, suite: &str, packages: &[(&str, &str)], key: &str) {
        let architecture = stdout(Command::new("dpkg").arg("--print-architecture"));
        let architecture = architecture.trim();
        let dist = self.path(&format!("archive/debian/dists/{suite}"));
        let binary = format!("main/binary-{architecture}");
        fs::create_dir_all(dist.join(&binary)).unwrap();
        let mut list = String::new();
        for (name, version) in packages {
            let file = format!("pool/{name}_{version}_all.deb");
            let path = self.path(&format!("archive/debian/{file}"));
            list.push_str(&format!(
                "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@x>\n\
                 Filename: {file}\nSize: {}\nSHA256: {}\nDescription: x\n\n",
                fs::metadata(&path).unwrap().len(),
                sha256(&path),
            ));
        }
        let packages = dist.join(&binary).join("Packages");
        fs::write(&packages, &list).unwrap();
        let release = format!(
            "Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: {suite}\nDate: {}\n\
             Architectures: {architecture}\nComponents: main\nSHA256:\n {} {} {binary}/Packages\n",
            stdout(Command::new("date").args(["-Ru"])).trim(),
            sha256(&packages),
            list.len(),
        );
        let unsigned = dist.join("Release");
        fs::write(&unsigned, release).unwrap();
        let signed = dist.join("InRelease");
        self.gpg(&[
            "--local-user",
            key,
            "--output",
            signed.to_str().unwrap(),
            "--clearsign",
            unsigned.to_str().unwrap(),
        ]);
        fs::remove_file(unsigned).unwrap();
    }

    /// Makes the package of a kernel source, of a tree that builds in an instant.
    pub fn kernel_package(&self, name: &str, version: &str) {
        let tree = self.path("tree");
        fake_tree::create(&tree);
        let content = self.path("content");
        let src = content.join("usr/src");
        fs::create_dir_all(&src).unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(self.dir.path()).arg("-cJf");
        check(tar.arg(src.join(format!("{name}.tar.xz"))).arg("tree"));
        self.package(name, version, &content);
    }

    /// Makes the package of Debian's keys, with the key `new` in it.
    pub fn keyring_package(&self, version: &str) {
        let content = self.path("content");
        let dir = content.join("usr/share/keyrings");
        fs::create_dir_all(&dir).unwrap();
        fs::copy(self.path("new.gpg"), dir.join("debian-archive-keyring.gpg")).unwrap();
        self.package("debian-archive-keyring", version, &content);
    }

    fn package(&self, name: &str, version: &str, content: &Path) {
        let control = content.join("DEBIAN");
        fs::create_dir_all(&control).unwrap();
        let text = format!(
            "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
        );
        fs::write(control.join("control"), text).unwrap();
        let pool = self.path("archive/debian/pool");
        fs::create_dir_all(&pool).unwrap();
        let deb = pool.join(format!("{name}_{version}_all.deb"));
        check(Command::new("dpkg-deb").arg("-b").arg(content).arg(deb));
        fs::remove_dir_all(content).unwrap();
    }

    /// `apt-get update`, as the machine's administrator does it.
    pub fn update_machine(&self) {
        let mut apt = Command::new("apt-get");
        check(self.on_machine(apt.args(["-qq", "update"])));
        fs::remove_file(self.path("machine/hooked")).unwrap();
    }

    fn on_machine<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("APT_CONFIG", self.path("apt.conf"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env_remove("http_proxy")
            .current_dir("/")
    }

    /// `kscope build --source SOURCE` on the machine.
    pub fn build(&self, source: &str) -> Output {
        let mut kscope = Command::new(KSCOPE);
        let kscope = kscope.args(["build", "--source", source]);
        self.on_machine(kscope).output().unwrap()
    }

    /// Every file of the machine's apt, with what would change if it were
    /// written.
    pub fn machine(&self) -> String {
        let mut find = Command::new("find");
        find.arg(self.path("machine"));
        let list = stdout(find.args(["-printf", "%p %s %T@\n"]));
        let mut lines: Vec<&str> = list.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    }

    /// From now on nobody answers.
    pub fn disconnect(&mut self) {
        self.server = None;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let mut kill = Command::new("gpgconf");
        kill.arg("--homedir").arg(self.path("keys"));
        let _ = kill.args(["--kill", "all"]).status();
    }
}

fn sha256(path: &Path) -> String {
    let text = stdout(Command::new("sha256sum").arg(path));
    text.split(' ').next().unwrap().to_owned()
}

fn check(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

/// Hands out the files of a directory until it is dropped.
struct Server {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(root: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // That a client went away is its own affair.
                let _ = stream.and_then(|stream| answer(stream, &root));
            }
        });
        Self {
            port,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One request, one file; then the connection ends.
fn answer(mut stream: TcpStream, root: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or("/");
    let path = path.trim_start_matches('/').replace("%7e", "~");
    let (status, body) = match fs::read(root.join(path)) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)
}
