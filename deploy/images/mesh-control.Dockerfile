# The control server; the same image as `cargo xtask images` writes without Docker.
#
#     docker build -f deploy/images/mesh-control.Dockerfile -t mesh-control:0.1.0 .
#
# The last stage has no shell, no package manager and no users, only the program and glibc.
FROM rust:1.95-bookworm AS build
WORKDIR /mesh
COPY . .
RUN cargo xtask images --only mesh-control --unpack /image

FROM scratch
COPY --from=build /image /
USER 65532:65532
ENV PATH=/usr/bin
EXPOSE 15010 15012 15014
ENTRYPOINT ["/usr/bin/mesh-control"]
