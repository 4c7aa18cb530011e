package controlplane

// Page returns docs/reference/controlplane.md.
func Page() string {
	return pageHead + Reference() + pageMiddle + MetricsReference() + pageEnd
}

const pageHead = "# txmesh-controlplane\n\n" +
	"Printed from the tables in controlplane/keys.go, metrics.go and reference.go by `go test ./controlplane -run Page -rewrite`.\n\n" +
	`The control plane hands out policies, peers, roots and certificates to the sidecars of a mesh, and shows how they take
them. It touches no transaction: while it is away, sidecars go on with what they have. It prints one line of JSON when its
ports are open: their addresses, the bundle, the root's fingerprint and the file with the token.

## Configuration

` + "A value comes from the flag `--KEY`, else the variable `TXMESH_KEY`, else the YAML file named by `--config` (or\n" +
	"`TXMESH_CONFIG`), else its default. Unknown keys are errors; all errors are reported at once.\n\n"

const pageMiddle = `
## Certificates

The root is made once and lies in root.pem of the data directory, or is given by root-certificate and root-key. Replicas
share it. Certificates of workloads live for an hour, carry the SPIFFE id alone and never the key, which stays with the
workload.

` + "`POST /v1/certificates` on the port for sidecars, with a join token as bearer or the certificate that is to be renewed:\n\n" +
	"```json\n{\"csr\": \"-----BEGIN CERTIFICATE REQUEST-----...\", \"service\": \"bank/accounts\"}\n```\n\n" +
	"answers `{\"certificate\": PEM, \"bundle\": PEM, \"expires\": RFC 3339}`, or a problem (RFC 9457) with 400 for a request that asks for\n" +
	"other names, or has an elliptic key below 256 or an RSA key below 2048 bits; 401 for a token that is not the service's, or was good\n" +
	"once and has been used with another key; 403 for a certificate of another service.\n\n" +
	`To change the root:

1. Put the new root's certificate into the file of more-roots, at every replica. The files are read every ten seconds.
2. When every sidecar has had time to take the new bundle, give the new root as root-certificate and root-key (or root.pem)
   and put the old certificate into more-roots.
3. After a certificate-life, take the old one out of more-roots.

## xDS

One port speaks gRPC and HTTPS: clients of gRPC offer h2 alone, others get HTTP/1.1. A stream needs a certificate of the mesh;
its node must be of the certificate's service. Sidecars speak delta ADS with explicit ` + "`*`" + ` subscriptions, ten types at most:

| type | name | content |
|---|---|---|
` + "| `envoy.config.core.v3.TypedExtensionConfig` | `namespace/name`, `namespace/name.grant`, `.access`, `.traffic` | one policy document as it was written, in a `google.protobuf.StringValue` |\n" +
	"| `envoy.config.endpoint.v3.ClusterLoadAssignment` | `namespace/name` | the sidecars of a service; `filter_metadata[\"txmesh\"]` is the metadata of the sidecar's node. A stand-by is DRAINING |\n" +
	"| `envoy.extensions.transport_sockets.tls.v3.Secret` | `ROOTCA`, `mesh-secret` | the bundle, and the secret that signs contexts if there is one |\n" +
	"| `envoy.service.runtime.v3.Runtime` | `heartbeat` | `count` and `at`, with every beat |\n" +
	"| | `takeover/OWNER` | `owner`, `adopter` and `reason`: advice to adopt a journal on a shared store. The store's epoch decides |\n\n" +
	"Clients of gRPC's own (`xds:///namespace/name`) speak state-of-the-world ADS and find each service as Listener, Cluster and\n" +
	"ClusterLoadAssignment; calls are balanced over the inbound ports of its sidecars. A name that is not known yet is answered by\n" +
	"gRPC's client after its own 15 seconds.\n\n" +
	`What follows for clients:

- Policies are not answered before the control plane has read a good set. A set with a fault changes nothing.
- The server keeps back all further changes of a type until its last response of that type is acknowledged or refused.
- What was refused is not sent again before it changes.
- A sidecar whose stream has gone stays a peer for the grace time. After a start of the control plane, whoever comes back with
  resources in hand gets no answer about peers for as long, so that nothing is taken from it before others have come back too.
- A takeover is offered for sidecars that went while this control plane, or another replica, was watching.

## Replicas

Replicas keep no state of their own. Each reads the same files, and each keeps a stream to every other one, by which it
learns the sidecars connected there and how they took the policies. So a sidecar connects to one replica, whichever, and any
replica shows all. When a replica is lost, what it told stays for the grace time, in which its sidecars come to the others.

## Status

` + "`GET /v1/status`, with the token or a certificate of the mesh, on either port; `txmesh policy status` prints it. Versions are hashes\n" +
	"of the whole set, of which people say the first four digits. A sidecar is\n\n" +
	"- `accepted`: it runs the policies in force,\n- `refused`: it cannot compile them, keeps its last good set, and says why,\n" +
	"- `stale`: it has not answered yet,\n- `frozen`: it is connected and has not answered something for two heartbeats.\n\n" +
	"The api port also has `GET /healthz`, `GET /readyz` (503 with reasons until there are good policies), `GET /metrics`, and with the\n" +
	"token `GET /debug/pprof/`, the profiles of Go's runtime: `heap` says what the memory is of.\n\n## Metrics\n\n"

const pageEnd = "\nValues lie at most a second behind.\n"
