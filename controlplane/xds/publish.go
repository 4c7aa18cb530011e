package xds

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	runtime "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// setsMax is how many versions of the policies' cache are remembered: an answer to an older one is to nothing we know.
const setsMax = 128

// SetPolicies hands out a set: YAML documents by their names.
func (s *Server) SetPolicies(version string, documents map[string]string) error {
	all := make(map[string]types.Resource, len(documents))
	for name, text := range documents {
		packed, err := anypb.New(wrapperspb.String(text))
		if err != nil {
			return fmt.Errorf("policy %s: %w", name, err)
		}
		all[name] = &core.TypedExtensionConfig{Name: name, TypedConfig: packed}
	}
	// The version must be known before the first response goes out, which is while the cache is updated.
	s.mu.Lock()
	if s.policies == "" {
		s.sets[s.caches.prefix+"0"] = version // a first set without documents does not change the cache
	}
	s.policies = version
	s.mu.Unlock()
	err := s.caches.policies.set(all, func(string) bool { return true }, func(n uint64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sets[s.caches.prefix+strconv.FormatUint(n, 10)] = version
		if n > setsMax {
			delete(s.sets, s.caches.prefix+strconv.FormatUint(n-setsMax, 10))
		}
	})
	if err != nil {
		return fmt.Errorf("hand out policies %s: %w", version, err)
	}
	return s.caches.loading.release()
}

// SetEndpoints hands out the endpoints of each service, and those connected here to other replicas. gRPC's own clients
// find each service as a listener with a route to a cluster.
func (s *Server) SetEndpoints(all, here map[string]*endpoint.ClusterLoadAssignment) error {
	endpoints, own := make(map[string]types.Resource, len(all)), make(map[string]types.Resource, len(here))
	clusters, listeners := make(map[string]types.Resource, len(all)), make(map[string]types.Resource, len(all))
	for service, a := range all {
		l, err := listenerOf(service)
		if err != nil {
			return fmt.Errorf("listener of %s: %w", service, err)
		}
		endpoints[service], clusters[service], listeners[service] = a, clusterOf(service), l
	}
	for service, a := range here {
		own[service] = a
	}
	// What is pointed to comes before what points to it, and goes after.
	for _, step := range []struct {
		name string
		c    *collection
		all  map[string]types.Resource
	}{{"endpoints", s.caches.endpoints, endpoints}, {"clusters", s.caches.clusters, clusters}, {"listeners", s.caches.listeners, listeners},
		{"endpoints for replicas", s.caches.here, own}} {
		if err := step.c.replace(step.all); err != nil {
			return fmt.Errorf("hand out %s: %w", step.name, err)
		}
	}
	return nil
}

func adsSource() *core.ConfigSource {
	return &core.ConfigSource{ResourceApiVersion: core.ApiVersion_V3, ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}}
}

func clusterOf(service string) *cluster.Cluster {
	return &cluster.Cluster{Name: service, ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS}, LbPolicy: cluster.Cluster_ROUND_ROBIN,
		EdsClusterConfig: &cluster.Cluster_EdsClusterConfig{EdsConfig: adsSource(), ServiceName: service}}
}

func listenerOf(service string) (*listener.Listener, error) {
	filter, err := packed(&router.Router{})
	if err != nil {
		return nil, err
	}
	manager, err := packed(&hcm.HttpConnectionManager{
		RouteSpecifier: &hcm.HttpConnectionManager_RouteConfig{RouteConfig: &route.RouteConfiguration{Name: service,
			VirtualHosts: []*route.VirtualHost{{Name: service, Domains: []string{"*"}, Routes: []*route.Route{{
				Match:  &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: ""}},
				Action: &route.Route_Route{Route: &route.RouteAction{ClusterSpecifier: &route.RouteAction_Cluster{Cluster: service}}}}}}}}},
		HttpFilters: []*hcm.HttpFilter{{Name: "router", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: filter}}}})
	if err != nil {
		return nil, err
	}
	return &listener.Listener{Name: service, ApiListener: &listener.ApiListener{ApiListener: manager}}, nil
}

// packed is deterministic, so that equal resources are equal bytes at every replica.
func packed(m proto.Message) (*anypb.Any, error) {
	a := &anypb.Any{}
	return a, anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true})
}

// SetSecrets hands out the roots, and the secret that signs contexts if there is one, to streams with a certificate.
func (s *Server) SetSecrets(bundle, meshSecret []byte) error {
	inline := func(data []byte) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: data}}
	}
	all := map[string]types.Resource{"ROOTCA": &tls.Secret{Name: "ROOTCA", Type: &tls.Secret_ValidationContext{
		ValidationContext: &tls.CertificateValidationContext{TrustedCa: inline(bundle)}}}}
	if len(meshSecret) > 0 {
		all["mesh-secret"] = &tls.Secret{Name: "mesh-secret", Type: &tls.Secret_GenericSecret{GenericSecret: &tls.GenericSecret{Secret: inline(meshSecret)}}}
	}
	if err := s.caches.secrets.replace(all); err != nil {
		return fmt.Errorf("hand out secrets: %w", err)
	}
	return nil
}

const (
	heartbeatName  = "heartbeat"
	takeoverPrefix = "takeover/"
)

// SetTakeovers hands out who should adopt whose journal: fields by owner.
func (s *Server) SetTakeovers(takeovers map[string]map[string]any) error {
	all := make(map[string]types.Resource, len(takeovers))
	for owner, fields := range takeovers {
		layer, err := structpb.NewStruct(fields)
		if err != nil {
			return fmt.Errorf("takeover of %s: %w", owner, err)
		}
		all[takeoverPrefix+owner] = &runtime.Runtime{Name: takeoverPrefix + owner, Layer: layer}
	}
	return s.setRuntime("takeovers", all, func(name string) bool { return strings.HasPrefix(name, takeoverPrefix) })
}

// SetHeartbeat hands out one heartbeat.
func (s *Server) SetHeartbeat(count int64, at time.Time) error {
	layer, err := structpb.NewStruct(map[string]any{"count": count, "at": at.UTC().Format(time.RFC3339)})
	if err != nil {
		return fmt.Errorf("heartbeat %d: %w", count, err)
	}
	return s.setRuntime("heartbeat", map[string]types.Resource{heartbeatName: &runtime.Runtime{Name: heartbeatName, Layer: layer}},
		func(string) bool { return false })
}

func (s *Server) setRuntime(what string, all map[string]types.Resource, replaces func(name string) bool) error {
	if err := s.caches.runtime.set(all, replaces, func(uint64) {}); err != nil {
		return fmt.Errorf("hand out %s: %w", what, err)
	}
	return nil
}

// Settle ends the time in which nothing is taken from clients that come back: whoever is not here by now has gone.
func (s *Server) Settle() error {
	for _, h := range s.caches.settling {
		if err := h.release(); err != nil {
			return fmt.Errorf("settle: %w", err)
		}
	}
	return nil
}
