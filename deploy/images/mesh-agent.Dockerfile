# The node agent and meshctl; the same image as `cargo xtask images` writes without Docker.
#
#     docker build -f deploy/images/mesh-agent.Dockerfile -t mesh-agent:0.1.0 .
#
# The last stage has no shell, no package manager and no users, only the two programs and the glibc they need.
FROM rust:1.95-bookworm AS build
WORKDIR /mesh
COPY . .
# Installs what builds the kernel programs, builds everything and collects what the image holds.
RUN cargo xtask images --only mesh-agent --unpack /image

FROM scratch
COPY --from=build /image /
# Root, because the files that it shares with the node are root's. The DaemonSet takes all of root's other powers away.
USER 0:0
ENV PATH=/usr/bin
ENTRYPOINT ["/usr/bin/mesh-agent"]
CMD ["run"]
