//! mesh-agent
