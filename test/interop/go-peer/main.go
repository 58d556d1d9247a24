// A stock go-libp2p node with the IPFS DHT, for test/interop: prints its addresses, then does what it is asked to: a
// command per line on stdin, an answer per line on stdout, both JSON.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
)

type command struct {
	Do      string `json:"do"`
	Address string `json:"address"`
	Cid     string `json:"cid"`
}

type node struct {
	host host.Host
	dht  *dht.IpfsDHT
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	h, err := libp2p.New(
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws"),
		libp2p.ForceReachabilityPublic(),
		libp2p.EnableRelayService(),
	)
	if err != nil {
		return err
	}
	defer h.Close()
	// On loopback there are no public addresses to keep.
	d, err := dht.New(ctx, h, dht.Mode(dht.ModeServer), dht.AddressFilter(nil))
	if err != nil {
		return err
	}
	addresses, err := peer.AddrInfoToP2pAddrs(&peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()})
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(map[string]any{"peer": h.ID(), "addresses": addresses}); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var asked command
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			return err
		}
		value, err := node{h, d}.execute(ctx, asked)
		answer := map[string]any{"value": value}
		if err != nil {
			answer = map[string]any{"fault": err.Error()}
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (n node) execute(ctx context.Context, asked command) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	switch asked.Do {
	case "connect":
		info, err := peer.AddrInfoFromString(asked.Address)
		if err != nil {
			return nil, err
		}
		return info.ID, n.host.Connect(ctx, *info)
	case "ping":
		id, err := peer.Decode(asked.Address)
		if err != nil {
			return nil, err
		}
		result := <-ping.Ping(ctx, n.host, id)
		return result.RTT.Seconds() * 1000, result.Error
	case "identified":
		id, err := peer.Decode(asked.Address)
		if err != nil {
			return nil, err
		}
		protocols, err := n.host.Peerstore().GetProtocols(id)
		agent, _ := n.host.Peerstore().Get(id, "AgentVersion")
		return map[string]any{"agent": agent, "protocols": protocols}, err
	case "security":
		id, err := peer.Decode(asked.Address)
		if err != nil {
			return nil, err
		}
		states := []any{}
		for _, c := range n.host.Network().ConnsToPeer(id) {
			states = append(states, map[string]any{"security": c.ConnState().Security, "muxer": c.ConnState().StreamMultiplexer})
		}
		return states, nil
	case "table":
		return n.dht.RoutingTable().ListPeers(), nil
	case "provide":
		c, err := cid.Decode(asked.Cid)
		if err != nil {
			return nil, err
		}
		return nil, n.dht.Provide(ctx, c, true)
	case "find":
		c, err := cid.Decode(asked.Cid)
		if err != nil {
			return nil, err
		}
		found := []peer.ID{}
		for info := range n.dht.FindProvidersAsync(ctx, c, 1) {
			found = append(found, info.ID)
		}
		return found, nil
	default:
		return nil, errors.New("unknown command " + asked.Do)
	}
}
