# The node agent and meshctl.
#
#     docker build -f deploy/images/mesh-agent.Dockerfile -t mesh-agent:0.1.0 .
#
# The last stage has no shell, no package manager and no users, only the two programs and the glibc they need. Static builds
# were weighed: musl's allocator has one lock for all threads, and a static glibc cannot look up names.
FROM rust:1.95-bookworm AS build
WORKDIR /mesh
COPY . .
# `cargo xtask build-ebpf` installs what builds the kernel programs.
RUN cargo xtask build-ebpf \
 && cargo build --release --locked --package mesh-agent --bins
RUN deploy/images/collect /image target/release/mesh-agent target/release/meshctl

FROM scratch
COPY --from=build /image /
# Root, because the files that it shares with the node are root's. The DaemonSet takes all of root's other powers away.
USER 0:0
ENV PATH=/usr/bin
ENTRYPOINT ["/usr/bin/mesh-agent"]
CMD ["run"]
