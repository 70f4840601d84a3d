//! IP packets and checksums, octet by octet.

/// What one reading of an IP packet finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    pub version: u8,
    pub protocol: u8,
    pub tos: u8,
    pub fragment: bool,
    pub options: bool,
    pub dont_fragment: bool,
    /// Octets of the IP header and its extensions.
    pub header: usize,
    /// Octets of the packet by its own length field.
    pub length: usize,
}

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const FRAGMENT: u8 = 44;

/// Hop-by-hop options, routing, fragment and destination options: the extension headers that RFC 8200 defines.
fn is_extension(protocol: u8) -> bool {
    protocol == 0 || protocol == 43 || protocol == FRAGMENT || protocol == 60
}

pub fn two(octets: &[u8], at: usize) -> usize {
    usize::from(octets[at]) * 256 + usize::from(octets[at + 1])
}

/// `None`: not a sound IP packet, or one with more than 8 extension headers.
pub fn read_ip(octets: &[u8]) -> Option<Ip> {
    let version = octets.first()? >> 4;
    if version == 4 {
        if octets.len() < 20 {
            return None;
        }
        let header = usize::from(octets[0] % 16) * 4;
        let length = two(octets, 2);
        if header < 20 || length < header || length > octets.len() {
            return None;
        }
        let word = two(octets, 6);
        return Some(Ip {
            version,
            protocol: octets[9],
            tos: octets[1],
            fragment: word & 0x3fff != 0,
            options: header != 20,
            dont_fragment: word & 0x4000 != 0,
            header,
            length,
        });
    }
    if version != 6 || octets.len() < 40 {
        return None;
    }
    let length = 40 + two(octets, 4);
    if length > octets.len() {
        return None;
    }
    let mut ip = Ip {
        version,
        protocol: octets[6],
        tos: (octets[0] % 16) * 16 + octets[1] / 16,
        fragment: false,
        options: is_extension(octets[6]),
        dont_fragment: true,
        header: 40,
        length,
    };
    let mut walked = 0;
    while is_extension(ip.protocol) {
        walked += 1;
        if walked > 8 || ip.header + 8 > length {
            return None;
        }
        let at = ip.header;
        let is_fragment = ip.protocol == FRAGMENT;
        ip.header += if is_fragment { 8 } else { 8 + 8 * usize::from(octets[at + 1]) };
        if ip.header > length {
            return None;
        }
        ip.protocol = octets[at];
        if is_fragment {
            let offset = two(octets, at + 2) / 8;
            let more = octets[at + 3] % 2 == 1;
            ip.fragment = ip.fragment || offset != 0 || more;
            if offset != 0 {
                // What follows is data from the middle of a packet.
                break;
            }
        }
    }
    Some(ip)
}

/// RFC 1071: the ones' complement sum of 16-bit words, carry by carry.
pub fn sum(octets: &[u8]) -> u16 {
    let mut total = 0u32;
    let mut at = 0;
    while at < octets.len() {
        let low = if at + 1 < octets.len() { octets[at + 1] } else { 0 };
        total += u32::from(octets[at]) * 256 + u32::from(low);
        if total > 0xffff {
            total -= 0xffff;
        }
        at += 2;
    }
    total as u16
}

pub fn checksum(octets: &[u8]) -> u16 {
    0xffff - sum(octets)
}

/// The pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) for `length` octets of transport.
pub fn pseudo_header(octets: &[u8], ip: &Ip, length: usize) -> Vec<u8> {
    let mut pseudo = if ip.version == 4 { octets[12..20].to_vec() } else { octets[8..40].to_vec() };
    pseudo.extend([0, (length / 65_536) as u8, (length / 256) as u8, length as u8]);
    pseudo.extend([0, 0, 0, ip.protocol]);
    pseudo
}

/// Where the checksum of a transport lies in it.
pub fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        _ => None,
    }
}

pub fn put(octets: &mut [u8], at: usize, value: u16) {
    octets[at] = (value / 256) as u8;
    octets[at + 1] = value as u8;
}

pub fn write_ip_checksum(octets: &mut [u8], header: usize) {
    put(octets, 10, 0);
    let value = checksum(&octets[..header]);
    put(octets, 10, value);
}

/// Fill in the checksums of a packet as far as it has room for them.
pub fn write_checksums(octets: &mut [u8]) {
    if let Some(ip) = read_ip(octets) {
        let pseudo = pseudo_header(octets, &ip, ip.length - ip.header);
        write_checksums_over(octets, &ip, &pseudo);
    }
}

/// The same with a pseudo-header, or octets of the same sum, that is not that of the IP header's addresses.
pub fn write_checksums_over(octets: &mut [u8], ip: &Ip, pseudo: &[u8]) {
    if ip.version == 4 {
        write_ip_checksum(octets, ip.header);
    }
    let Some(at) = checksum_at(ip.protocol).filter(|at| !ip.fragment && ip.header + at + 2 <= ip.length) else {
        return;
    };
    put(octets, ip.header + at, 0);
    let value = checksum(&[pseudo, &octets[ip.header..ip.length]].concat());
    put(octets, ip.header + at, if value == 0 && ip.protocol == UDP { 0xffff } else { value });
}

/// Lower the MSS option of a SYN, if it is higher. The checksum is corrected by what the segment's sum changes.
/// True if it was lowered.
pub fn clamp_mss(octets: &mut [u8], ip: &Ip, mtu: usize) -> bool {
    let segment = &mut octets[ip.header..ip.length];
    if ip.protocol != TCP || ip.fragment || segment.len() < 20 || segment[13] & 2 == 0 {
        return false;
    }
    let header = usize::from(segment[12] / 16) * 4;
    if header < 20 || header > segment.len() {
        return false;
    }
    let mss = mtu.saturating_sub(if ip.version == 4 { 40 } else { 60 }).clamp(1, 65_535);
    let mut at = 20;
    while at < header && segment[at] != 0 {
        if segment[at] == 1 {
            at += 1;
            continue;
        }
        if at + 1 >= header || segment[at + 1] < 2 || at + usize::from(segment[at + 1]) > header {
            return false;
        }
        if segment[at] == 2 && segment[at + 1] == 4 {
            if two(segment, at + 2) <= mss {
                return false;
            }
            let given = two(segment, 16) as u16;
            put(segment, 16, 0);
            let before = sum(segment);
            put(segment, at + 2, mss as u16);
            let after = sum(segment);
            let changed = sum(&[(!given).to_be_bytes(), (!before).to_be_bytes(), after.to_be_bytes()].concat());
            put(segment, 16, !changed);
            return true;
        }
        at += usize::from(segment[at + 1]);
    }
    false
}

/// One spelling of what may be spelled in two ways: a checksum of 0xffff is one of 0 (but for UDP, where 0 is none).
/// `checksums`: leave transport and header checksums out. `renumbered`: leave the number of an IPv4 packet with DF out,
/// which means nothing (RFC 6864 section 4.1).
pub fn normalise(octets: &mut [u8], renumbered: bool, checksums: bool) {
    let Some(ip) = read_ip(octets) else { return };
    if ip.version == 4 {
        if renumbered && ip.dont_fragment {
            put(octets, 4, 0);
            put(octets, 10, 0);
        }
        if checksums || two(octets, 10) == 0xffff {
            put(octets, 10, 0);
        }
    }
    if let Some(at) = checksum_at(ip.protocol)
        && !ip.fragment
        && ip.header + at + 2 <= ip.length
        && (checksums || ip.protocol == TCP && two(octets, ip.header + at) == 0xffff)
    {
        put(octets, ip.header + at, 0);
    }
}
