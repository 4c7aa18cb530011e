// Package api is the control plane over HTTP: certificates for those who may have them, the status of the mesh, health
// and metrics. It decides who may ask; what is answered comes from its Options. Start at Shared and Local.
package api

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strings"

	"txmesh/controlplane/authority"
)

// Reviewer says whether a token lets its bearer join as a service. A Kubernetes token review fits the same form.
type Reviewer interface {
	// Review returns nil, an error that wraps authority.ErrToken when the token is not known here, or another one when
	// it cannot be said. The fingerprint is that of the key that the certificate would be for.
	Review(ctx context.Context, token, service, fingerprint string) error
}

// Options is what the API is made of.
type Options struct {
	Authority *authority.Authority
	Reviewers []Reviewer // the first that knows a token lets its bearer in
	Secure    bool       // the shared port has TLS: without it no certificates are given
	Token     string     // of the status
	Status    func() Status
	Ready     func() []string // why this replica is not ready
	Metrics   http.Handler
	Issued    func(result Result) // a request for a certificate was answered
	Log       *slog.Logger
}

// Result is how a request for a certificate ended.
type Result string

// The results, a closed set: it tags a metric.
const (
	Joined  Result = "joined"
	Renewed Result = "renewed"
	Refused Result = "refused"
	Failed  Result = "failed"
)

// bodyMax bounds a request.
const bodyMax = 64 << 10

type handler struct{ opt Options }

// Shared is served on the port that sidecars reach.
func Shared(opt Options) http.Handler {
	h := handler{opt}
	m := http.NewServeMux()
	m.HandleFunc("POST /v1/certificates", h.certificates)
	m.HandleFunc("GET /v1/status", h.status)
	m.HandleFunc("GET /healthz", h.healthz)
	return m
}

// Local is served on the port of operators and probes.
func Local(opt Options) http.Handler {
	h := handler{opt}
	m := http.NewServeMux()
	m.HandleFunc("GET /v1/status", h.status)
	m.HandleFunc("GET /healthz", h.healthz)
	m.HandleFunc("GET /readyz", h.readyz)
	m.Handle("GET /metrics", opt.Metrics)
	for path, f := range map[string]http.HandlerFunc{"": pprof.Index, "cmdline": pprof.Cmdline, "profile": pprof.Profile,
		"symbol": pprof.Symbol, "trace": pprof.Trace} {
		m.HandleFunc("GET /debug/pprof/"+path, h.withToken(f))
	}
	return m
}

// withToken is for who has the token: a profile shows what is in memory.
func (h handler) withToken(f http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !h.hasToken(r) {
			refuse(w, http.StatusUnauthorized, "the token is missing or wrong; it is in the control plane's token-file")
			return
		}
		f(w, r)
	}
}

func (h handler) healthz(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]bool{"ok": true})
}

func (h handler) readyz(w http.ResponseWriter, _ *http.Request) {
	reasons := h.opt.Ready()
	if len(reasons) > 0 {
		answer(w, http.StatusServiceUnavailable, map[string]any{"ready": false, "reasons": reasons})
		return
	}
	answer(w, http.StatusOK, map[string]any{"ready": true})
}

// status is for who has the token, or a certificate of the mesh.
func (h handler) status(w http.ResponseWriter, r *http.Request) {
	_, _, err := h.opt.Authority.Caller(r.TLS)
	if err != nil && !h.hasToken(r) {
		refuse(w, http.StatusUnauthorized, "the token is missing or wrong, and there is no certificate of this mesh; the token is in the control plane's token-file")
		return
	}
	answer(w, http.StatusOK, h.opt.Status())
}

func (h handler) hasToken(r *http.Request) bool {
	return subtle.ConstantTimeCompare([]byte(bearer(r)), []byte(h.opt.Token)) == 1
}

func bearer(r *http.Request) string {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return strings.TrimSpace(token)
}

// certificateRequest and certificateAnswer are the bodies of POST /v1/certificates.
type certificateRequest struct {
	CSR     string `json:"csr"`     // PEM
	Service string `json:"service"` // namespace/name
}

type certificateAnswer struct {
	Certificate string `json:"certificate"` // PEM, the leaf first
	Bundle      string `json:"bundle"`      // PEM
	Expires     string `json:"expires"`     // RFC 3339
}

// refusal is an error with the status that it is answered with.
type refusal struct {
	code int
	error
}

func (h handler) certificates(w http.ResponseWriter, r *http.Request) {
	out, result, err := h.certify(w, r)
	h.opt.Issued(result)
	if err == nil {
		answer(w, http.StatusOK, out)
		return
	}
	if no, ok := errors.AsType[refusal](err); ok {
		h.opt.Log.Warn("certificate refused", "from", r.RemoteAddr, "error", err)
		refuse(w, no.code, err.Error())
		return
	}
	h.opt.Log.Error("certificate failed", "from", r.RemoteAddr, "error", err)
	refuse(w, http.StatusInternalServerError, "the control plane could not decide or sign; its log says why")
}

func (h handler) certify(w http.ResponseWriter, r *http.Request) (*certificateAnswer, Result, error) {
	if !h.opt.Secure {
		return nil, Refused, refusal{http.StatusForbidden, errors.New("this control plane is insecure: without TLS a token would be read by others, so it gives no certificates")}
	}
	var in certificateRequest
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyMax))
	body.DisallowUnknownFields()
	if err := body.Decode(&in); err != nil {
		return nil, Refused, refusal{http.StatusBadRequest, fmt.Errorf("body is not {\"csr\": PEM, \"service\": \"namespace/name\"}: %w", err)}
	}
	req, err := h.opt.Authority.Read(in.CSR, in.Service)
	if err != nil {
		return nil, Refused, refusal{http.StatusBadRequest, err}
	}
	result, err := h.admit(r, in.Service, req.Fingerprint())
	if err != nil {
		return nil, result, err
	}
	c, err := h.opt.Authority.Sign(req)
	if err != nil {
		return nil, Failed, err
	}
	h.opt.Log.Info("certificate given", "service", in.Service, "how", string(result), "expires", c.Expires)
	return &certificateAnswer{Certificate: string(c.Chain), Bundle: string(c.Bundle), Expires: c.Expires.Format("2006-01-02T15:04:05Z07:00")}, result, nil
}

// admit decides whether a caller is the service: by its certificate, else by its token.
func (h handler) admit(r *http.Request, service, fingerprint string) (Result, error) {
	token := bearer(r)
	if token == "" {
		return h.renew(r.TLS, service)
	}
	for _, reviewer := range h.opt.Reviewers {
		err := reviewer.Review(r.Context(), token, service, fingerprint)
		if err == nil {
			return Joined, nil
		}
		if !errors.Is(err, authority.ErrToken) {
			return Failed, fmt.Errorf("review a token for %s: %w", service, err)
		}
		if err != authority.ErrToken { //nolint:errorlint // wrapped, it says more
			return Refused, refusal{http.StatusUnauthorized, err}
		}
	}
	return Refused, refusal{http.StatusUnauthorized, fmt.Errorf("join as %s: %w", service, authority.ErrToken)}
}

func (h handler) renew(s *tls.ConnectionState, service string) (Result, error) {
	was, _, err := h.opt.Authority.Caller(s)
	if err != nil {
		return Refused, refusal{http.StatusUnauthorized, fmt.Errorf("join as %s: no token as bearer, and %w", service, err)}
	}
	if was != service {
		return Refused, refusal{http.StatusForbidden, fmt.Errorf("a certificate of %q renews no certificate of %s", was, service)}
	}
	return Renewed, nil
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // whoever asked has gone
}

func refuse(w http.ResponseWriter, code int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"title": http.StatusText(code), "status": code, "detail": detail}) // whoever asked has gone
}
