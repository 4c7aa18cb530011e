package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"

	"google.golang.org/grpc/credentials"
)

// ControlPlane returns TLS to the control plane at host, a name or an address: with this sidecar's certificate, against
// the roots in force and those given, which may be nil. The server's certificate must name the host: ids of the mesh
// alone belong to every workload. It follows a change of certificate and roots with each handshake.
func (i *Identity) ControlPlane(host string, also *x509.CertPool) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			m, err := i.get()
			if err != nil {
				return new(tls.Certificate), nil //nolint:nilerr // none is shown
			}
			return &m.wants.Certificates[0], nil
		},
		// crypto/tls knows one set of roots; here there are two, and one of them changes.
		InsecureSkipVerify: true,
		VerifyConnection:   func(s tls.ConnectionState) error { return i.verifyControlPlane(s, host, also) },
	}
}

func (i *Identity) verifyControlPlane(s tls.ConnectionState, host string, also *x509.CertPool) error {
	if host == "" || len(s.PeerCertificates) == 0 {
		return errors.New("the control plane has no name or no certificate")
	}
	opt := x509.VerifyOptions{DNSName: host, Roots: also, Intermediates: x509.NewCertPool()}
	for _, c := range s.PeerCertificates[1:] {
		opt.Intermediates.AddCert(c)
	}
	m, err := i.get()
	if err == nil {
		opt.Roots = m.wants.ClientCAs
		if _, err = s.PeerCertificates[0].Verify(opt); err == nil {
			return nil
		}
	}
	if opt.Roots = also; also == nil {
		return err
	}
	_, err = s.PeerCertificates[0].Verify(opt)
	return err
}

// Credentials is ControlPlane for gRPC, as for a stream of configuration.
func (i *Identity) Credentials(host string, also *x509.CertPool) credentials.TransportCredentials {
	return credentials.NewTLS(i.ControlPlane(host, also))
}
