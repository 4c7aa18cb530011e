package identity

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"txmesh/sidecar/xds/envoy"
)

// What an SDS source serves, and where.
const (
	secretType   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	secretMethod = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
)

// SDS gets certificates from whoever serves Envoy's secrets over a Unix socket, such as SPIRE's agent.
type SDS struct {
	Socket string // path
	Node   string // how this sidecar calls itself there
	Name   string // of the certificate: "default", or a SPIFFE id
	Roots  string // of the roots: "ROOTCA", or the trust domain's SPIFFE id
}

// Run holds a stream and takes what comes, until ctx ends.
func (s SDS) Run(ctx context.Context, i *Identity) {
	for failures := 0; ; {
		took, err := s.stream(ctx, i)
		if ctx.Err() != nil {
			return
		}
		if took {
			failures = 0
		}
		failures++
		i.opt.Log.Warn("secrets not served", "socket", s.Socket, "failures", failures, "error", i.unfit(err))
		if !rest(ctx, retryAfter(failures)) {
			return
		}
	}
}

// stream runs until it breaks. took says that something of it was put in force.
func (s SDS) stream(ctx context.Context, i *Identity) (took bool, _ error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := grpc.NewClient("unix:"+s.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return false, fmt.Errorf("sds-socket %s: %w", s.Socket, err)
	}
	defer func() { _ = conn.Close() }() // the stream has ended
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, secretMethod)
	if err != nil {
		return false, fmt.Errorf("sds-socket %s: %w", s.Socket, err)
	}
	ask := &envoy.DiscoveryRequest{Node: &envoy.Node{Id: s.Node}, TypeUrl: secretType, ResourceNames: []string{s.Name, s.Roots}}
	var got secrets
	for {
		if err := stream.SendMsg(ask); err != nil {
			return took, fmt.Errorf("ask %s for secrets: %w", s.Socket, err)
		}
		res := &envoy.DiscoveryResponse{}
		if err := stream.RecvMsg(res); err != nil {
			return took, fmt.Errorf("secrets %q and %q of %s: %w", s.Name, s.Roots, s.Socket, err)
		}
		ask = &envoy.DiscoveryRequest{TypeUrl: secretType, ResourceNames: ask.ResourceNames, VersionInfo: ask.VersionInfo, ResponseNonce: res.Nonce}
		err := got.add(res, s)
		if err == nil && got.complete() {
			err = got.take(i)
		}
		if err != nil {
			i.opt.Log.Warn("secrets not taken", "socket", s.Socket, "error", err)
			ask.ErrorDetail = &envoy.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
			continue
		}
		ask.VersionInfo = res.VersionInfo
		took = took || got.complete()
	}
}

// secrets is what has come so far: the two may come one after the other.
type secrets struct{ cert, key, roots []byte }

func (g *secrets) complete() bool { return len(g.cert) > 0 && len(g.roots) > 0 }

func (g *secrets) add(res *envoy.DiscoveryResponse, s SDS) error {
	for _, r := range res.Resources {
		var secret envoy.Secret
		if r.TypeUrl != secretType {
			return fmt.Errorf("secret is of type %q, want %q", r.TypeUrl, secretType)
		}
		if err := proto.Unmarshal(r.Value, &secret); err != nil {
			return fmt.Errorf("secret: %w", err)
		}
		switch {
		case secret.TlsCertificate != nil && secret.Name == s.Name:
			c := secret.TlsCertificate
			g.cert, g.key = c.CertificateChain.GetInlineBytes(), c.PrivateKey.GetInlineBytes()
			if len(g.cert) == 0 || len(g.key) == 0 {
				return fmt.Errorf("secret %s has no certificate or no key inline", s.Name)
			}
		case secret.ValidationContext != nil && secret.Name == s.Roots:
			if g.roots = secret.ValidationContext.TrustedCa.GetInlineBytes(); len(g.roots) == 0 {
				return fmt.Errorf("secret %s has no trusted_ca inline", s.Roots)
			}
		default:
			return fmt.Errorf("secret %q was not asked for, or is of another kind", secret.Name)
		}
	}
	return nil
}

func (g *secrets) take(i *Identity) error {
	svid, err := x509svid.Parse(g.cert, g.key)
	if err != nil {
		return i.unfit(err)
	}
	bundle, err := x509bundle.Parse(i.domain, g.roots)
	if err != nil {
		return i.unfit(errors.Join(errors.New("roots"), err))
	}
	return i.Take(svid, bundle)
}
