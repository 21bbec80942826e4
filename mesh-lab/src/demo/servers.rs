//! The programs that run in the shop's pods: nginx, Redis, PostgreSQL, and our echo server for the rest.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_lab::{Mesh, Process, Program};

use super::show::Show;

/// How long a server may take to start.
const START: Duration = Duration::from_secs(30);

/// Running servers; they end when this is dropped, unless [kept](Servers::keep).
pub(super) struct Servers {
    processes: Vec<Process>,
}

impl Servers {
    pub(super) fn start(mesh: &Mesh, show: &mut Show, detached: bool) -> Result<Self> {
        let mut servers = Starter { mesh, detached, processes: Vec::new() };
        for pod in ["web-1", "web-2", "web-3", "web-4", "billing-1"] {
            servers.echo(pod, &["8080"])?;
        }
        servers.echo("vault-1", &["8200"])?;
        servers.echo("client", &["9000"])?;
        servers.host_echo("payments", &["8443"])?;
        let nginx = servers.nginx("static-1")?;
        let redis = servers.redis("cart-1")?;
        let postgres = servers.postgres("orders-1")?;
        // Stands in for the metrics exporter beside the database.
        servers.echo("orders-1", &["9187"])?;
        show.table(
            ["pod", "server"],
            [
                ["static-1".to_owned(), nginx],
                ["cart-1".to_owned(), redis],
                ["orders-1".to_owned(), postgres],
                [
                    "web-1 to web-4, vault-1, billing-1, payments".to_owned(),
                    "echo server (mesh-lab echo)".to_owned(),
                ],
            ],
        );
        Ok(Self { processes: servers.processes })
    }

    /// Leaves the servers running; they were started detached.
    pub(super) fn keep(self) {
        drop(self.processes);
    }
}

struct Starter<'a> {
    mesh: &'a Mesh,
    detached: bool,
    processes: Vec<Process>,
}

impl Starter<'_> {
    fn spawn(&mut self, program: Program, ready: &str) -> Result<()> {
        let program = if self.detached { program.detached() } else { program };
        let mut process = program.spawn()?;
        process.wait_for_log(ready, START)?;
        self.processes.push(process);
        Ok(())
    }

    fn echo(&mut self, pod: &str, ports: &[&str]) -> Result<()> {
        let machine = self.mesh.lab().pod(pod)?;
        self.start_echo(machine, ports)
    }

    fn host_echo(&mut self, host: &str, ports: &[&str]) -> Result<()> {
        let machine = self.mesh.lab().host(host)?;
        self.start_echo(machine, ports)
    }

    fn start_echo(&mut self, machine: &mesh_lab::Machine, ports: &[&str]) -> Result<()> {
        let mut program = machine.program(self.mesh.programs().path("mesh-lab"))?.args([
            "echo",
            "--udp",
            "--name",
            machine.name(),
        ]);
        for port in ports {
            program = program.args(["--listen", port]);
        }
        self.spawn(program, "listens on")
    }

    fn nginx(&mut self, pod: &str) -> Result<String> {
        let directory = self.directory(pod)?;
        let configuration = directory.join("nginx.conf");
        fs::write(
            &configuration,
            format!(
                "worker_processes 1; daemon off; pid {0}/nginx.pid; error_log stderr notice;\n\
                 events {{}}\n\
                 http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;\n\
                 uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
                 server {{ listen 80; listen [::]:80; location / {{ default_type text/plain; return 200 \"the shop's catalogue\\n\"; }} }} }}\n",
                directory.display()
            ),
        )?;
        let nginx = find("nginx", &["/usr/sbin/nginx"])?;
        let machine = self.mesh.lab().pod(pod)?;
        let program = machine.program(&nginx)?.arg("-c").arg(&configuration).arg("-p").arg(&directory);
        self.spawn(program, "start worker process")?;
        let version = machine.program(&nginx)?.arg("-v").output()?;
        Ok(version.stderr.trim().trim_start_matches("nginx version: ").to_owned())
    }

    fn redis(&mut self, pod: &str) -> Result<String> {
        let redis = find("redis-server", &["/usr/bin/redis-server"])?;
        let directory = self.directory(pod)?;
        let machine = self.mesh.lab().pod(pod)?;
        let program = machine
            .program(&redis)?
            .args(["--port", "6379", "--bind", "0.0.0.0", "::", "--protected-mode", "no", "--save", ""])
            .arg("--dir")
            .arg(&directory);
        self.spawn(program, "Ready to accept connections")?;
        let version = machine.program(&redis)?.arg("--version").output()?;
        let number = version.stdout.split_whitespace().find_map(|word| word.strip_prefix("v="));
        Ok(format!("redis/{}", number.unwrap_or("?")))
    }

    fn postgres(&mut self, pod: &str) -> Result<String> {
        let binaries = postgres_binaries()?;
        let directory = self.directory(pod)?;
        // The server refuses to run as root.
        let user = nix::unistd::User::from_name("postgres")?
            .context("there is no user `postgres`: apt-get install postgresql makes it")?;
        chown(&directory, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        let data = directory.join("data");
        let machine = self.mesh.lab().pod(pod)?;
        let as_postgres = |program: &str| -> Result<Program> {
            let runner = machine.program("setpriv")?;
            let runner = runner.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]);
            Ok(runner.arg(binaries.join(program)).current_dir("/"))
        };
        let made = as_postgres("initdb")?
            .args(["--no-sync", "--auth=trust", "--username=shop", "-D"])
            .arg(&data)
            .output()?;
        if !made.status.success() {
            bail!("initdb: {}{}", made.stdout, made.stderr);
        }
        let access = data.join("pg_hba.conf");
        fs::write(&access, "host all all all trust\nlocal all all trust\n")?;
        let program = as_postgres("postgres")?
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=*", "-c", "fsync=off", "-c"])
            .arg(format!("unix_socket_directories={}", directory.display()));
        self.spawn(program, "ready to accept connections")?;
        let version = as_postgres("postgres")?.arg("--version").output()?;
        let number = version.stdout.split_whitespace().nth(2).unwrap_or("?");
        Ok(format!("postgresql/{number}"))
    }

    /// A directory for a server's files, gone with the lab.
    fn directory(&self, pod: &str) -> Result<PathBuf> {
        let directory = self.mesh.lab().log_directory().join("servers").join(pod);
        fs::create_dir_all(&directory)?;
        Ok(directory)
    }
}

/// The newest PostgreSQL of this machine.
fn postgres_binaries() -> Result<PathBuf> {
    let root = Path::new("/usr/lib/postgresql");
    let versions = fs::read_dir(root).context("PostgreSQL is missing: apt-get install postgresql")?;
    let newest = versions
        .filter_map(|entry| entry.ok()?.file_name().to_string_lossy().parse::<u32>().ok())
        .max()
        .context("PostgreSQL is missing: apt-get install postgresql")?;
    Ok(root.join(newest.to_string()).join("bin"))
}

fn find(name: &str, places: &[&str]) -> Result<PathBuf> {
    places
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is missing: `cargo xtask setup` installs it"))
}
