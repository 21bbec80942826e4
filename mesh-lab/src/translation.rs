//! Translates addresses on a node as kube-proxy does: cluster IPs and NodePorts to a pod, by nftables or iptables.
//!
//! What the two have in common with the real one is what matters to packets: where the translation happens, the mark
//! for masquerading (`0x4000`) and who masquerades, and that packets conntrack finds invalid are dropped.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use crate::machine::Machine;

/// Who translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translator {
    /// `iptables` and `ip6tables`.
    Iptables,
    /// `nft`.
    Nftables,
}

/// Who a translated connection seems to come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masquerade {
    /// From who opened it: what pods open, and `externalTrafficPolicy: Local`.
    Off,
    /// From the node: what comes from outside, by default.
    On,
}

/// One translation. A node can have one for each address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// By what.
    pub by: Translator,
    /// From these, addresses and ports of one family.
    pub from: Vec<SocketAddr>,
    /// To this, of the same family.
    pub to: SocketAddr,
    /// Whether the client's address is kept.
    pub masquerade: Masquerade,
}

impl Translation {
    /// Has a node translate what comes in and what it sends itself. It goes with the node's network namespace.
    ///
    /// # Errors
    /// When the tool is missing or refuses; with what it said.
    pub fn install(&self, node: &Machine) -> io::Result<()> {
        let script = match self.by {
            Translator::Iptables => self.iptables(),
            Translator::Nftables => self.nftables(),
        };
        let output = node.namespace().run(|| Command::new("sh").args(["-ec", &script]).output())??;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("{script}: {}", String::from_utf8_lossy(&output.stderr))))
    }

    fn nftables(&self) -> String {
        let family = if self.to.is_ipv4() { "ip" } else { "ip6" };
        let mark = match self.masquerade {
            Masquerade::On => "meta mark set meta mark or 0x4000",
            Masquerade::Off => "",
        };
        let rules: String = self
            .from
            .iter()
            .map(|from| {
                format!("{family} daddr {} tcp dport {} {mark} dnat to {}; ", from.ip(), from.port(), self.to)
            })
            .collect();
        let drop_invalid = |hook: &str| {
            format!(" chain {hook} {{ type filter hook {hook} priority 0; ct state invalid drop; }}\n")
        };
        format!(
            "nft -f - <<END\ntable {family} kube-proxy {{\n\
             chain services {{ {rules} }}\n\
             chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
             chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
             chain nat-postrouting {{ type nat hook postrouting priority srcnat; \
             meta mark and 0x4000 == 0 return; meta mark set meta mark xor 0x4000; masquerade fully-random; }}\n\
             {}{}{}}}\nEND",
            drop_invalid("forward"),
            drop_invalid("input"),
            drop_invalid("output"),
        )
    }

    fn iptables(&self) -> String {
        let tool = if self.to.is_ipv4() { "iptables -w" } else { "ip6tables -w" };
        let mut lines = vec![format!("{tool} -t nat -N KUBE-SVC")];
        if self.masquerade == Masquerade::On {
            lines.push(format!("{tool} -t nat -A KUBE-SVC -j MARK --or-mark 0x4000"));
        }
        lines.push(format!("{tool} -t nat -A KUBE-SVC -p tcp -j DNAT --to-destination {}", self.to));
        for from in &self.from {
            for chain in ["PREROUTING", "OUTPUT"] {
                lines.push(format!(
                    "{tool} -t nat -A {chain} -d {} -p tcp --dport {} -j KUBE-SVC",
                    from.ip(),
                    from.port()
                ));
            }
        }
        lines.extend([
            format!("{tool} -t nat -A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN"),
            format!("{tool} -t nat -A POSTROUTING -j MARK --xor-mark 0x4000"),
            format!("{tool} -t nat -A POSTROUTING -j MASQUERADE --random-fully"),
        ]);
        for chain in ["FORWARD", "INPUT", "OUTPUT"] {
            lines.push(format!("{tool} -A {chain} -m conntrack --ctstate INVALID -j DROP"));
        }
        lines.join("\n")
    }
}

/// Gives addresses that are translated a way to be sent to, as a node's default route is.
///
/// # Errors
/// When the kernel refuses the route.
pub fn route_services(node: &Machine, services: &[IpAddr], device: &str) -> io::Result<()> {
    for service in services {
        let family = if service.is_ipv4() { "-4" } else { "-6" };
        let arguments = [family, "route", "replace", &service.to_string(), "dev", device].map(str::to_owned);
        let status = node.namespace().run(|| Command::new("ip").args(&arguments).status())??;
        if !status.success() {
            return Err(io::Error::other(format!("ip {}: {status}", arguments.join(" "))));
        }
    }
    Ok(())
}
