"""Microsoft's own client for Python asks for a token on behalf of a user; prints what came as JSON.

    msal_obo.py AUTHORITY CA CLIENT SCOPE TOKEN secret SECRET
    msal_obo.py AUTHORITY CA CLIENT SCOPE TOKEN certificate KEY CERTIFICATE
"""

import json
import os
import sys

# Of the environment, which would win over `verify`.
for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
    os.environ.pop(name, None)

import msal  # noqa: E402

authority, ca, client, scope, token, kind, *proof = sys.argv[1:]
if kind == "secret":
    credential = proof[0]
else:
    key, certificate = (open(path, encoding="ascii").read() for path in proof)
    credential = {"private_key": key, "public_certificate": certificate}
application = msal.ConfidentialClientApplication(
    client, authority=authority, client_credential=credential, verify=ca, instance_discovery=False
)
print(json.dumps(application.acquire_token_on_behalf_of(token, [scope]), default=str))
