use super::*;
use crate::steering::host::testing::{CAPTURE, in_namespace_async, shell};

#[test]
fn rules_that_look_at_the_mesh_s_bits_are_found() {
    in_namespace_async(async || {
        shell("ip rule add pref 100 fwmark 0x4000/0x4000 lookup main");
        assert_eq!(on_marks(CAPTURE).await.unwrap(), [] as [&str; 0]);
        shell("ip -6 rule add pref 7 fwmark 0x3000/0xf000 lookup main");
        assert_eq!(on_marks(CAPTURE).await.unwrap(), ["pref 7 fwmark 0x3000/0xf000"]);
    });
}
