//! Where the programs of a mesh are found.

use std::path::{Path, PathBuf};

use super::MeshError;

/// Where the mesh's programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Those in `$MESH_BIN_DIR`, else those beside the running program, which is where cargo puts them.
    ///
    /// # Errors
    /// When one of them is missing.
    pub fn find() -> Result<Self, MeshError> {
        let directory = match std::env::var_os("MESH_BIN_DIR") {
            Some(directory) => PathBuf::from(directory),
            None => {
                let own = std::env::current_exe()
                    .map_err(|source| MeshError::File { path: "/proc/self/exe".into(), source })?;
                let beside = own.parent().unwrap_or(Path::new("."));
                // Test programs are one level down, in `deps`.
                match beside.file_name() {
                    Some(name) if name == "deps" => beside.parent().unwrap_or(beside).to_owned(),
                    _ => beside.to_owned(),
                }
            }
        };
        for name in ["mesh-agent", "mesh-control", "meshctl", "mesh-lab"] {
            let path = directory.join(name);
            if !path.is_file() {
                return Err(MeshError::NotBuilt(path));
            }
        }
        Ok(Self { directory })
    }

    /// The program of this name.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}
