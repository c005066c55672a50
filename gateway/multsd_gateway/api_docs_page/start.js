// A token that is typed here is gone with the page.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null, persistAuthorization: false });
