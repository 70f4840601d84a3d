//! In steady state, no packet costs a heap allocation.

mod common;

use std::num::NonZeroU32;

use common::*;
use dsvpn_dataplane::*;

#[test]
fn a_warm_data_plane_allocates_nothing() {
    let setups = [Setup::default(), Setup { esn: true, ..Setup::default() }, Setup::plain_gre()];
    for (setup, worker) in setups.into_iter().flat_map(|setup| [(setup, 0), (setup, 1), (setup, 2)]) {
        let mut dataplane = Loop::new(setup);
        if let Some(worker) = NonZeroU32::new(worker) {
            dataplane.encap.share(worker);
        }
        if let (2, Some(suite)) = (worker, setup.suite) {
            // An SA of its own, besides what the others seal by.
            let keymat: Vec<u8> = (7..).take(suite.keymat_length()).collect();
            let spi = dataplane.writer.allocate_spi(8).unwrap();
            dataplane.writer.add_inbound_sa(spi, suite, &keymat, &[1], setup.esn, setup.replay_window).unwrap();
            dataplane.writer.set_resource_sa(1, spi, suite, &keymat, &[1], setup.esn).unwrap();
            dataplane.writer.commit();
        }
        let flows = [Flow::default(), Flow { udp: true, ..Flow::default() }, Flow { v6: true, ..Flow::default() }];
        let mut arena = Vec::new();
        let mut metas = Vec::new();
        for index in 0..24 {
            let (octets, virtio) = match (&flows[index % 3], index % 2) {
                (flow, 0) => flow.superpacket(&payload(20_000), 1300),
                (flow, _) => single(flow.packet(&payload(index * 40))),
            };
            let meta = PacketMeta { offset: arena.len() as u32, length: octets.len() as u32, virtio, reserved: 0 };
            metas.push(meta);
            arena.extend_from_slice(&octets);
        }
        // NEEDS_CSUM of a single packet, a SYN, and one that is cut.
        let (octets, virtio) = flows[0].superpacket(&payload(100), 0);
        let cut = Flow { dont_fragment: false, ..Flow::default() }.packet(&payload(3000));
        let syn = Flow { flags: 2, options: vec![2, 4, 0x23, 0x28], ..Flow::default() }.packet(&[]);
        for (octets, gso_type, flags) in [(octets, 0, virtio.flags), (cut, 0, 0), (syn, 0, 0)] {
            let virtio = dsvpn_wire::virtio::VirtioNetHeader { gso_type, flags, ..virtio };
            let meta = PacketMeta { offset: arena.len() as u32, length: octets.len() as u32, virtio, reserved: 0 };
            metas.push(meta);
            arena.extend_from_slice(&octets);
        }
        let mut send = vec![0; 512 * 1024];
        let (mut batch, mut replies, mut tun) = (SendBatch::new(), TunBatch::new(), TunBatch::new());
        let mut datagrams = Vec::with_capacity(1024);
        let kind = dataplane.datagram_kind();
        let mut vector = |dataplane: &mut Loop| {
            let tables = dataplane.reader.enter().unwrap();
            let progress = dataplane.encap.run(&tables, 0, &arena, &metas, &mut send, &mut batch, &mut replies, SECOND);
            assert_eq!(progress.consumed, metas.len());
            datagrams.clear();
            datagrams.extend(batch.messages.iter().map(|message| Datagram {
                offset: message.offset,
                length: message.length,
                segment_size: message.segment_size,
                kind,
                local: Some(OURS),
                local_port: 4500,
                remote: THEIRS,
                remote_port: if kind == DatagramKind::UdpNat { 4500 } else { 0 },
            }));
            dataplane.decap.run(&tables, &mut send, &datagrams, &mut tun, SECOND);
            assert!(tun.packets.len() >= 12);
            batch.clear();
            dataplane.encap.release();
            replies.clear();
            tun.clear();
        };
        vector(&mut dataplane);
        let measured = allocation_counter::measure(|| {
            for _ in 0..20 {
                vector(&mut dataplane);
            }
        });
        assert_eq!(measured.count_total, 0, "{setup:?}: {measured:?}");
        if worker == 2 && setup.suite.is_some() {
            assert_eq!(dataplane.writer.outbound_sa_counters(1).unwrap().packets, 0);
            assert!(dataplane.writer.resource_sa_counters(1, 1).unwrap().packets > 0);
        }
        assert_eq!(
            dataplane.shared.counters.iter().filter(|(name, value)| name.starts_with("drop_") && *value > 0).count(),
            0
        );
        // The measurement itself works.
        assert_eq!(allocation_counter::measure(|| drop(std::hint::black_box(Box::new(7u64)))).count_total, 1);
    }
}
